// The operands of frozen products (frozen_product.h): what the values of a row are, how a step of k
// adds to the sums of R rows with V vectors of weights, and how a vector of activations becomes
// values.
#pragma once

#include "frozen.h"
#include "storage.h"

namespace fastrnn::cpu::FASTRNN_ISA {

constexpr int kFrozenWidth = kVectorBytes / int(sizeof(float));
constexpr int kParts = kFrozenLanes / kFrozenWidth;
constexpr int kFrozenLine = kFrozenLanes * int(sizeof(float));  // bytes of a step of one gate

// One block of units of a matrix.
struct FrozenPanel {
  int64_t steps;
  const char* weights;
  const float *bias, *scales;
  const int32_t* sums;
};

template <class Value>
struct FrozenRow {
  const Value* values;
  float scale;  // what a value of 1 stands for
};

// What float sums have in common.
struct FloatSums {
  using Sum = Vec<float>;
  static constexpr int kOthers = 3;  // of 16 registers, those without a sum
  static constexpr float kStateScale = 1;
  static FASTRNN_HD Sum zero() { return Sum(0.0f); }
  static FASTRNN_HD Sum add(Sum a, Sum b) { return a + b; }
  static FASTRNN_HD Vec<float> finish(Sum sum, const FrozenPanel& p, int at, float /*scale*/) {
    return sum + Sum::load(p.bias + at);
  }
  static FASTRNN_HD void store(float* to, Vec<float> x) { x.store(to); }
  static FASTRNN_HD void store(Bfloat16* to, Vec<float> x) {
    Storage<Bfloat16>::store(to, VecOf<Bfloat16>(x));
  }
  // A row of x, filled with zeros to whole vectors.
  template <class Value>
  static FASTRNN_HD float convert(const float* from, int64_t count, Value* to) {
    for (int64_t k = 0; k < frozen_padded(count); k += kFrozenWidth)
      store(to + k, load(from + k, count - k));
    return 1;
  }
};

struct FrozenFloat32 : FloatSums {
  using Value = float;
  static constexpr bool kTiles = false;     // whether several rows meet in tile registers
  static constexpr int kValues = 1;         // of k in a step
  static constexpr bool kConverts = false;  // whether rows of x become others

  template <int R, int V>
  static FASTRNN_HD void step(const Value* const* row, int64_t k, const char* w, Sum (*sum)[V]) {
    add_products<R, V>(
        sum, [&](int r) { return Sum(row[r][k]); },
        [&](int v) { return Sum::load((const float*)(w + v * kVectorBytes)); });
  }
};

// bfloat16 weights, two of k in 32 bits, widened; the rows stay float32.
struct FrozenWide : FloatSums {
  using Value = float;
  static constexpr bool kTiles = false;
  static constexpr int kValues = 2;
  static constexpr bool kConverts = true;  // they get an even number of values
  using Bits = Vec<float>::Bits;

  template <int R, int V>
  static FASTRNN_HD void step(const Value* const* row, int64_t k, const char* w, Sum (*sum)[V]) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      add_products<R, V>(
          sum, [&](int r) { return Sum(row[r][k + half]); },
          [&](int v) {
            const Bits bits = (Bits)Sum::load((const float*)(w + v * kVectorBytes)).v;
            return Sum((Sum::Raw)(half == 0 ? bits << 16 : bits & int32_t(0xffff0000)));
          });
      // The compiler loads the weights again for the other half: both need too many registers.
      asm("" : "+r"(w));
    }
  }
};

#if FASTRNN_LEVEL >= 3  // has the bfloat16 dot product
struct FrozenDot : FloatSums {
  using Value = Bfloat16;
  static constexpr bool kTiles = FASTRNN_LEVEL >= 4;
  static constexpr int kValues = 2;
  static constexpr bool kConverts = true;

  template <int R, int V>
  static FASTRNN_HD void step(const Value* const* row, int64_t k, const char* w, Sum (*sum)[V]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      int32_t pair;
      __builtin_memcpy(&pair, row[r] + k, sizeof pair);
      const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const __m512bh weights = (__m512bh)_mm512_loadu_si512(w + v * kVectorBytes);
        sum[r][v] = Sum((Sum::Raw)_mm512_dpbf16_ps((__m512)sum[r][v].v, x, weights));
      }
    }
  }
};
#endif

// int8 weights in -127 .. 127 and rows of uint8 around 128, four of k in 32 bits. The sums are
// exact, and so the same on every instruction set.
struct FrozenInt8 {
#if FASTRNN_LEVEL == 1 && !defined(FASTRNN_VNNI)
  // dot() adds in pairs, of 16 bits, and takes 128 off the values of a row.
  static constexpr bool kByPairs = true;
#else
  static constexpr bool kByPairs = false;  // what 128 adds is in `sums`
#endif
  using Value = uint8_t;
  static constexpr bool kTiles = FASTRNN_LEVEL >= 4;
  using Bits = Vec<float>::Bits;
  static constexpr int kValues = 4;
  static constexpr bool kConverts = true;
  static constexpr float kStateScale = 1.0f / 127;
  static constexpr int kOthers = kByPairs ? 5 : 3;

  struct Sum {
    Bits v;
  };
  static FASTRNN_HD Sum zero() { return {Bits{}}; }
  static FASTRNN_HD Sum add(Sum a, Sum b) { return {a.v + b.v}; }
  static FASTRNN_HD Vec<float> finish(Sum sum, const FrozenPanel& p, int at, float scale) {
    using V = Vec<float>;
    if constexpr (!kByPairs) sum.v -= (Bits)V::load((const float*)(p.sums + at)).v;
    const V units = V::load(p.scales + at) * V(scale);
    return multiply_add(as_float(sum.v), units, V::load(p.bias + at));
  }

  template <int R, int V>
  static FASTRNN_HD void step(const Value* const* row, int64_t k, const char* w, Sum (*sum)[V]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      int32_t four;
      __builtin_memcpy(&four, row[r] + k, sizeof four);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const Bits weights = (Bits)Vec<float>::load((const float*)(w + v * kVectorBytes)).v;
        sum[r][v].v = dot(sum[r][v].v, four, weights);
      }
    }
  }

  // The largest magnitude becomes 127. A row that is not finite everywhere has scale NaN.
  static FASTRNN_HD float convert(const float* from, int64_t count, Value* to) {
    Bits most = {};
    for (int64_t k = 0; k < count; k += kFrozenWidth) {
      const Bits magnitude = (Bits)load(from + k, count - k).v & 0x7fffffff;
      most = magnitude > most ? magnitude : most;
    }
    int32_t bits = 0;
    for (int i = 0; i < kFrozenWidth; ++i) bits = most[i] > bits ? most[i] : bits;
    constexpr int32_t kInfinity = 0x7f800000;
    constexpr float kLeast = 1e-30f;  // 127 divided by less might overflow
    const float largest = float_of(uint32_t(bits)) > kLeast ? float_of(uint32_t(bits)) : 1;
    const Vec<float> factor(bits < kInfinity ? 127 / largest : 0);
    for (int64_t k = 0; k < frozen_padded(count); k += kFrozenWidth)
      store_rounded(to + k, load(from + k, count - k) * factor);
    return bits < kInfinity ? largest / 127 : __builtin_nanf("");
  }
  static FASTRNN_HD void store(Value* to, Vec<float> x) {
    store_rounded(to, x * Vec<float>(127.0f));
  }

 private:
  // NaN becomes 128, which stands for 0.
  static FASTRNN_HD void store_rounded(Value* to, Vec<float> x) {
    constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it leaves integers in the low bits
    const Vec<float> shifted = at_most(at_least(x, -127.0f), 127.0f) + Vec<float>(kMagic);
    const Bits rounded = (Bits)shifted.v + 128;
#if FASTRNN_LEVEL >= 2
    _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)rounded));
#else
    for (int i = 0; i < kFrozenWidth; ++i) to[i] = uint8_t(rounded[i]);
#endif
  }

  static FASTRNN_HD Vec<float> as_float(Bits x) {
#if FASTRNN_LEVEL >= 2
    return Vec<float>((Vec<float>::Raw)_mm512_cvtepi32_ps((__m512i)x));
#else
    return Vec<float>(__builtin_convertvector(x, Vec<float>::Raw));
#endif
  }

  // sum + the products of four values of a row with the four weights of each lane.
  static FASTRNN_HD Bits dot(Bits sum, int32_t four, Bits weights) {
#if defined(FASTRNN_VNNI) && FASTRNN_LEVEL == 1
    return (Bits)_mm256_dpbusd_avx_epi32((__m256i)sum, _mm256_set1_epi32(four), (__m256i)weights);
#elif defined(FASTRNN_VNNI)
    return (Bits)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(four), (__m512i)weights);
#elif FASTRNN_LEVEL >= 2
    // In 16 bits: the even and the odd ones of the four.
    typedef int16_t Words __attribute__((vector_size(kVectorBytes)));
    const Words even = ((Words)weights << 8) >> 8, odd = (Words)weights >> 8;
    const Words first = (Words)(Bits{} + (four & 0x00ff00ff));
    const Words second = (Words)(Bits{} + int32_t(uint32_t(four) >> 8 & 0x00ff00ff));
    return sum + (Bits)_mm512_madd_epi16((__m512i)first, (__m512i)even) +
           (Bits)_mm512_madd_epi16((__m512i)second, (__m512i)odd);
#elif FASTRNN_LEVEL == 1
    // Magnitudes with weights of the product's sign. Two products of at most 127 * 127 fit 16 bits.
    const __m256i x = _mm256_set1_epi32(four ^ int32_t(0x80808080));
    const __m256i of_sign = _mm256_sign_epi8((__m256i)weights, x);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), of_sign);
    return sum + (Bits)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    for_each<4>([&](auto i) {
      sum += ((weights << (24 - 8 * i)) >> 24) * int32_t(uint32_t(four) >> (8 * i) & 255);
    });
    return sum;
#endif
  }
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
