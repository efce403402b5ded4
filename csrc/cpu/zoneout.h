// Which units keep their states in a step, as vectors of 0 and 1, or of the rates in expectation.
#pragma once

#include "../common/philox.h"
#include "schedule.h"
#include "storage.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// Random words of neighbouring counters.
struct Words {
  static constexpr int kWidth = kVectorBytes / 4;
  typedef uint32_t Raw __attribute__((vector_size(kVectorBytes)));
  typedef uint64_t Wide __attribute__((vector_size(kVectorBytes)));
  Raw v;

  Words() = default;
  FASTRNN_HD explicit Words(uint32_t word) : v(word - Raw{}) {}
  FASTRNN_HD explicit Words(Raw raw) : v(raw) {}
  FASTRNN_HD friend Words operator^(Words a, Words b) { return Words(a.v ^ b.v); }

  static FASTRNN_HD Words counting_from(uint32_t first) {
    Raw raw;
    for (int i = 0; i < kWidth; ++i) raw[i] = first + uint32_t(i);
    return Words(raw);
  }
};

// Products of the words in even places, and of those in odd ones.
FASTRNN_HD void multiply_words(Words a, uint32_t b, Words* high, Words* low) {
  using Wide = Words::Wide;
  constexpr uint64_t kLow = 0xffffffffu;
#if FASTRNN_LEVEL >= 2
  const __m512i factor = _mm512_set1_epi64(b);
  const Wide even = (Wide)_mm512_mul_epu32((__m512i)a.v, factor);
  const Wide odd = (Wide)_mm512_mul_epu32((__m512i)((Wide)a.v >> 32), factor);
#elif FASTRNN_LEVEL == 1
  const __m256i factor = _mm256_set1_epi64x(b);
  const Wide even = (Wide)_mm256_mul_epu32((__m256i)a.v, factor);
  const Wide odd = (Wide)_mm256_mul_epu32((__m256i)((Wide)a.v >> 32), factor);
#else
  const Wide even = ((Wide)a.v & kLow) * b, odd = ((Wide)a.v >> 32) * b;
#endif
  *high = Words((Words::Raw)(even >> 32 | (odd & ~kLow)));
  *low = Words((Words::Raw)((even & kLow) | odd << 32));
}

template <class V, class A>
class Zones {
 public:
  FASTRNN_HD Zones(const Zoneout& zoneout, const Schedule& schedule, int64_t t, int64_t b)
      : zoneout(zoneout),
        key(zoneout.seeds ? uint64_t(zoneout.seeds[schedule.state(b)]) : 0),
        step(uint32_t(zoneout.first_step + t)) {}

  // Of the units from j on: of h, and of the other states. Not inline, for few calls come here.
  __attribute__((noinline)) void load(int64_t j, V* keep) const {
    if (!zoneout.seeds) {
      for (int k = 0; k < 2; ++k) keep[k] = V(A(zoneout.rates[k]));
      return;
    }
    Words words[] = {Words::counting_from(uint32_t(j)), Words(step), Words(0u), Words(0u)};
    philox(words, key);
    for (int k = 0; k < 2; ++k) {
      A lanes[V::kWidth];
      for (int i = 0; i < V::kWidth; ++i)
        lanes[i] = words[k].v[i] >> (32 - kChanceBits) < zoneout.thresholds[k] ? A(1) : A(0);
      keep[k] = V::load(lanes);
    }
  }

 private:
  const Zoneout& zoneout;
  const uint64_t key;
  const uint32_t step;
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
