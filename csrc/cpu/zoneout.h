// Which units keep their states in a step, as vectors of 0 and 1, or of the rates in expectation.
#pragma once

#include "../common/philox.h"
#include "schedule.h"
#include "storage.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// A random word for each lane of a vector of A, in the lower halves of 64 bits; the upper halves
// hold anything. Of floats, those of the even lanes are one part and those of the odd lanes
// another.
template <class A>
struct Words {
  typedef uint64_t Wide __attribute__((vector_size(kVectorBytes)));
  static constexpr int kParts = 8 / int(sizeof(A));
  Wide parts[kParts];

  Words() = default;
  FASTRNN_HD explicit Words(uint32_t word) {
    for (Wide& part : parts) part = word - Wide{};
  }
  FASTRNN_HD friend Words operator^(Words a, Words b) {
    for (int i = 0; i < kParts; ++i) a.parts[i] ^= b.parts[i];
    return a;
  }

  static FASTRNN_HD Words counting_from(uint32_t first) {
    Words words(first);
    for (int part = 0; part < kParts; ++part) {
      Wide lanes;  // a constant; lanes that are stored one by one and then read together take long
      for (int i = 0; i < kVectorBytes / 8; ++i) lanes[i] = uint64_t(i * kParts + part);
      words.parts[part] += lanes;
    }
    return words;
  }

  // 1 in the lanes whose upper bits, as a number, are below the threshold, 0 in the others.
  template <class V>
  FASTRNN_HD V below(uint32_t threshold) const {
    using Bits = typename V::Bits;
    constexpr uint64_t kChances = (1u << kChanceBits) - 1;
    Wide chances{};
    for (int i = 0; i < kParts; ++i)
      chances |= (parts[i] >> (32 - kChanceBits) & kChances) << (32 * i);
    const Bits is_below = (Bits)chances < typename VecTypes<A>::Bit(threshold);
    return V((typename V::Raw)(is_below & (Bits)V(A(1)).v));
  }
};

template <class A>
FASTRNN_HD void multiply_words(Words<A> a, uint32_t b, Words<A>* high, Words<A>* low) {
  using Wide = typename Words<A>::Wide;
  for (int i = 0; i < Words<A>::kParts; ++i) {
#if FASTRNN_LEVEL >= 2
    const Wide product = (Wide)_mm512_mul_epu32((__m512i)a.parts[i], _mm512_set1_epi64(b));
#elif FASTRNN_LEVEL == 1
    const Wide product = (Wide)_mm256_mul_epu32((__m256i)a.parts[i], _mm256_set1_epi64x(b));
#else
    const Wide product = (a.parts[i] & 0xffffffffu) * b;
#endif
    high->parts[i] = product >> 32;
    low->parts[i] = product;
  }
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
    Words<A> words[] = {Words<A>::counting_from(uint32_t(j)), Words<A>(step), Words<A>(0u),
                        Words<A>(0u)};
    philox(words, key);
    for (int k = 0; k < 2; ++k) keep[k] = words[k].template below<V>(zoneout.thresholds[k]);
  }

 private:
  const Zoneout& zoneout;
  const uint64_t key;
  const uint32_t step;
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
