// exp, log, tanh, sigmoid, relu and the larger of vectors: 2e-7 relative in float, 1e-15 in double,
// 1e-4 for coarse vectors. NaN stays NaN.
//
// exp(x) = 2^n exp(r), n = round(x / ln 2), r = x - n ln 2 in [-0.347, 0.347]; exp(r) - 1 is its
// Taylor polynomial, long enough that its truncation lies below the rounding error. Adding kMagic
// rounds to an integer and leaves n in the low mantissa bits, ready to be shifted into an exponent.
#pragma once

#include "vec.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <class A>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  // At kHighest the scale is 2^128 = infinity, and sigmoid 0, as it has to be.
  static constexpr float kLowest = -87.0f, kHighest = 88.8f, kSaturated = 20.0f;
  static constexpr int kMantissa = 23, kBias = 127, kTerms = 7, kLogTerms = 4;
  static constexpr float kLeastNormal = 0x1p-126f;
};
template <>
struct ExpConstants<double> {
  static constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLn2High = 6.93147180369123816490e-01;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kLowest = -708.0, kHighest = 709.8, kSaturated = 40.0;
  static constexpr int kMantissa = 52, kBias = 1023, kTerms = 13, kLogTerms = 10;
  static constexpr double kLeastNormal = 0x1p-1022;
};
constexpr int kCoarseTerms = 4;
// 32 ln 2 and a power of two that float has exactly: there exp_parts() gives 2^32, whose rough
// reciprocal is exact, so that tanh saturates at 1 and its derivative at 0.
constexpr float kCoarseSaturated = 32 * 0.69314718055994530942f;

// exp(x) = scale * exp(r) = scale * (1 + r + r^2 * series)
template <class V>
struct ExpParts {
  V scale, r, series;
};

template <class A>
FASTRNN_HD constexpr A inverse_factorial(int n) {
  A value = 1;
  for (int i = 2; i <= n; ++i) value *= A(i);
  return A(1) / value;
}

// x must lie where the scale is a number or infinity, or be NaN.
template <class A, bool kCoarse>
FASTRNN_HD ExpParts<Vec<A, kCoarse>> exp_parts(Vec<A, kCoarse> x) {
  using C = ExpConstants<A>;
  using V = Vec<A, kCoarse>;
  using Bits = typename V::Bits;
  constexpr int kTerms = kCoarse ? kCoarseTerms : C::kTerms;
  const V shifted = multiply_add(x, V(A(1.44269504088896340736)), V(C::kMagic));
  const V n = shifted - V(C::kMagic);
  const V r = kCoarse ? multiply_add(n, V(A(-0.69314718055994530942)), x)
                      : multiply_add(n, V(-C::kLn2Low), multiply_add(n, V(-C::kLn2High), x));
  V series(inverse_factorial<A>(kTerms));
#pragma GCC unroll 16
  for (int i = kTerms - 1; i >= 2; --i)
    series = multiply_add(series, r, V(inverse_factorial<A>(i)));
  const Bits scale =
      ((Bits)shifted.v << C::kMantissa) + (typename VecTypes<A>::Bit(C::kBias) << C::kMantissa);
  return {V((typename V::Raw)scale), r, series};
}

// exp(x) - 1, precise around zero.
template <class V>
FASTRNN_HD V exp_minus_one(V x) {
  const ExpParts<V> e = exp_parts(x);
  return multiply_add(e.scale, multiply_add(e.series * e.r, e.r, e.r), V(e.scale.v - 1));
}

// With m = exp(2x) - 1, tanh = m / (m + 2) keeps its relative precision around zero. m is written
// such that -0 stays -0.
FASTRNN_HD Vec<float, true> tanh_(Vec<float, true> x) {
  using V = Vec<float, true>;
  const auto e = exp_parts(at_most(at_least(x + x, -kCoarseSaturated), kCoarseSaturated));
  const V minus_one = e.r * multiply_add(e.series, e.r, V(1.0f));
  const V m(e.scale.v * minus_one.v - (1.0f - e.scale.v));
  return quotient(m, m + V(2.0f));
}

// The same on |x|, and 1 - 2 / (m + 2) where that is near 1: it rounds only once, as the derivative
// 1 - tanh^2 needs.
template <class A>
FASTRNN_HD Vec<A> tanh_(Vec<A> x) {
  using V = Vec<A>;
  using Bits = typename V::Bits;
  const Bits sign = (Bits)x.v & (Bits)V(A(-0.0)).v;
  const V magnitude((typename V::Raw)((Bits)x.v ^ sign));
  const V m = exp_minus_one(at_most(magnitude + magnitude, ExpConstants<A>::kSaturated));
  const Bits large = m.v > A(2);
  const V part = quotient(V(large ? V(A(2)).v : m.v), m + V(A(2)));
  const V result(large ? A(1) - part.v : part.v);
  return V((typename V::Raw)((Bits)result.v | sign));
}

template <class A, bool kCoarse>
FASTRNN_HD Vec<A, kCoarse> sigmoid_(Vec<A, kCoarse> x) {
  using C = ExpConstants<A>;
  using V = Vec<A, kCoarse>;
  const V one(A(1));
  const ExpParts<V> e = exp_parts(V(-at_most(at_least(x, -C::kHighest), -C::kLowest).v));
  const V exp_r = multiply_add(multiply_add(e.series, e.r, one), e.r, one);
  return quotient(one, multiply_add(e.scale, exp_r, one));
}

// 0 where the result would not be a normal number.
template <class A, bool kCoarse>
FASTRNN_HD Vec<A, kCoarse> exp_(Vec<A, kCoarse> x) {
  using C = ExpConstants<A>;
  using V = Vec<A, kCoarse>;
  const V one(A(1));
  const ExpParts<V> e = exp_parts(at_most(at_least(x, C::kLowest), C::kHighest));
  // Half the scale, and twice the result: the scale may be infinity where the result is not.
  const typename V::Bits large = x.v > A(0);
  const V scale((typename V::Raw)((typename V::Bits)e.scale.v + (large << C::kMantissa)));
  const V value = scale * multiply_add(multiply_add(e.series, e.r, one), e.r, one);
  return V(x.v < C::kLowest ? typename V::Raw{} : large ? value.v + value.v : value.v);
}

// x = 2^n m with m between the square roots of 1/2 and 2, s = (m - 1) / (m + 1):
// log x = n ln 2 + 2 s (1 + s^2 / 3 + s^4 / 5 + ...)
template <class A, bool kCoarse>
FASTRNN_HD Vec<A, kCoarse> log_(Vec<A, kCoarse> x) {
  using C = ExpConstants<A>;
  using V = Vec<A, kCoarse>;
  using Raw = typename V::Raw;
  using Bits = typename V::Bits;
  constexpr A kUp = A(int64_t(1) << C::kMantissa);
  const Bits subnormal = x.v < C::kLeastNormal;
  const Bits bits = (Bits)(subnormal ? x.v * kUp : x.v);
  const Bits root = (Bits)V(A(0.70710678118654752440)).v;
  const Bits exponent = (bits - root) >> C::kMantissa;
  const V m((Raw)(bits - (exponent << C::kMantissa)));
  const Raw whole = __builtin_convertvector(exponent, Raw);
  const V n(subnormal ? whole - A(C::kMantissa) : whole);
  const V s(V(m.v - A(1)).v / V(m.v + A(1)).v), square = s * s;
  V series(A(1) / A(2 * C::kLogTerms + 1));
#pragma GCC unroll 16
  for (int i = C::kLogTerms - 1; i >= 0; --i)
    series = multiply_add(series, square, V(A(1) / A(2 * i + 1)));
  const V value = multiply_add(n, V(C::kLn2High), multiply_add(s + s, series, n * V(C::kLn2Low)));
  const A infinity = A(__builtin_inf());
  const Raw of_zero = x.v < A(0) ? V(A(__builtin_nan(""))).v : V(-infinity).v;
  // Infinity and NaN are their own.
  return V(x.v <= A(0) ? of_zero : x.v < infinity ? value.v : x.v);
}

// NaN where one of them is.
template <class A, bool kCoarse>
FASTRNN_HD Vec<A, kCoarse> max_(Vec<A, kCoarse> a, Vec<A, kCoarse> b) {
  return Vec<A, kCoarse>((a.v > b.v) | (a.v != a.v) ? a.v : b.v);
}
template <class A, bool kCoarse>
FASTRNN_HD Vec<A, kCoarse> is_larger(Vec<A, kCoarse> a, Vec<A, kCoarse> b) {
  using V = Vec<A, kCoarse>;
  return V(a.v > b.v ? V(A(1)).v : typename V::Raw{});
}

template <class A, bool kCoarse>
FASTRNN_HD Vec<A, kCoarse> relu_(Vec<A, kCoarse> x) {
  return Vec<A, kCoarse>(x.v < A(0) ? typename VecTypes<A>::Raw{} : x.v);
}

template <class A, bool kCoarse>
FASTRNN_HD Vec<A, kCoarse> relu_backward(Vec<A, kCoarse> grad, Vec<A, kCoarse> y) {
  return Vec<A, kCoarse>(y.v <= A(0) ? typename VecTypes<A>::Raw{} : grad.v);
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
