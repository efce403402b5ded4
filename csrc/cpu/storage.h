// Storage types and their accumulate types: loads and stores of whole and partial vectors.
#pragma once

#include "vec.h"

namespace fastrnn::cpu::FASTRNN_ISA {

struct Bfloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <class S>
using Accumulate = std::conditional_t<std::is_same_v<S, double>, double, float>;
template <class S>
using VecOf = Vec<Accumulate<S>, sizeof(S) == 2>;

FASTRNN_HD uint32_t bits_of(float x) { return __builtin_bit_cast(uint32_t, x); }
FASTRNN_HD float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }

FASTRNN_HD float widen(float x) { return x; }
FASTRNN_HD double widen(double x) { return x; }
FASTRNN_HD float widen(Bfloat16 x) { return float_of(uint32_t(x.bits) << 16); }
FASTRNN_HD float widen(Half x) {
#if FASTRNN_LEVEL >= 1  // has the float16 conversions
  return _cvtsh_ss(x.bits);
#else
  // Move exponent and mantissa into place and rebias by a product, which is right for subnormal
  // numbers too; infinity and NaN get float's largest exponent.
  const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13;
  uint32_t bits = bits_of(float_of(magnitude) * 0x1p112f);
  if ((x.bits & 0x7c00) == 0x7c00) bits = magnitude | 0x7f800000;
  return float_of(bits | uint32_t(x.bits & 0x8000) << 16);
#endif
}

// Round to nearest even; NaN stays NaN.
FASTRNN_HD void narrow(float x, float* out) { *out = x; }
FASTRNN_HD void narrow(double x, double* out) { *out = x; }
FASTRNN_HD void narrow(float x, Bfloat16* out) {
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out->bits = uint16_t(x != x ? 0x7fc0 : rounded);
}
FASTRNN_HD void narrow(float x, Half* out) {
#if FASTRNN_LEVEL >= 1  // has the float16 conversions
  out->bits = uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
#else
  const uint32_t sign = bits_of(x) >> 16 & 0x8000;
  const uint32_t magnitude = bits_of(x) & 0x7fffffff;
  uint32_t result;
  if (magnitude > 0x7f800000) {
    result = 0x7e00;
  } else if (magnitude >= 0x477ff000) {  // 65520 and above round to infinity
    result = 0x7c00;
  } else if (magnitude < 0x38800000) {  // subnormal: adding 0.5 leaves the bits at the bottom
    result = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
  } else {
    result = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
  out->bits = uint16_t(sign | result);
#endif
}

template <class S>
struct Storage {
  using V = VecOf<S>;
  static constexpr bool kSame = std::is_same_v<S, Accumulate<S>>;
  static FASTRNN_HD V load(const S* p) {
    if constexpr (kSame) return V::load(p);
    Accumulate<S> lanes[V::kWidth];
    for (int i = 0; i < V::kWidth; ++i) lanes[i] = widen(p[i]);
    return V::load(lanes);
  }
  static FASTRNN_HD void store(S* p, V x) {
    if constexpr (kSame) return x.store(p);
    Accumulate<S> lanes[V::kWidth];
    x.store(lanes);
    for (int i = 0; i < V::kWidth; ++i) narrow(lanes[i], p + i);
  }
};

template <>
struct Storage<Bfloat16> {
  using V = VecOf<Bfloat16>;
  typedef uint16_t Raw __attribute__((vector_size(kVectorBytes / 2)));
  typedef uint16_t Unaligned __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
  typedef uint32_t Wide __attribute__((vector_size(kVectorBytes)));

  static FASTRNN_HD V load(const Bfloat16* p) {
#if FASTRNN_LEVEL >= 2  // GCC 12 converts in halves
    return V((V::Raw)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)),
                                       16));
#elif FASTRNN_LEVEL == 1
    return V(
        (V::Raw)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
#else
    const Raw bits = *(const Unaligned*)p;
    return V((V::Raw)(__builtin_convertvector(bits, Wide) << 16));
#endif
  }
  static FASTRNN_HD void store(Bfloat16* p, V x) {
#if FASTRNN_LEVEL >= 3  // has the bfloat16 instructions
    *(Unaligned*)p = (Raw)_mm512_cvtneps_pbh((__m512)x.v);
#else
    const Wide bits = (Wide)x.v;
    const Wide rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Wide nan = Wide{} + 0x7fc0;
    *(Unaligned*)p = __builtin_convertvector(x.v != x.v ? nan : rounded, Raw);
#endif
  }
};

#if FASTRNN_LEVEL >= 1  // has the float16 conversions
template <>
struct Storage<Half> {
  using V = VecOf<Half>;
  static FASTRNN_HD V load(const Half* p) {
#if FASTRNN_LEVEL >= 2
    return V((V::Raw)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)));
#else
    return V((V::Raw)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)));
#endif
  }
  static FASTRNN_HD void store(Half* p, V x) {
#if FASTRNN_LEVEL >= 2
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)x.v, _MM_FROUND_TO_NEAREST_INT));
#else
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)x.v, _MM_FROUND_TO_NEAREST_INT));
#endif
  }
};
#endif

// The first `count` lanes; the others load as 0 and are not stored.
template <class S>
FASTRNN_HD VecOf<S> load(const S* p, int64_t count) {
  if (__builtin_expect(count >= VecOf<S>::kWidth, 1)) return Storage<S>::load(p);
  Accumulate<S> lanes[VecOf<S>::kWidth] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = widen(p[i]);
  return VecOf<S>::load(lanes);
}

template <class S>
FASTRNN_HD void store(S* p, VecOf<S> x, int64_t count) {
  if (__builtin_expect(count >= VecOf<S>::kWidth, 1)) return Storage<S>::store(p, x);
  Accumulate<S> lanes[VecOf<S>::kWidth];
  x.store(lanes);
  for (int64_t i = 0; i < count; ++i) narrow(lanes[i], p + i);
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
