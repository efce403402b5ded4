// exp, tanh, sigmoid and relu of vectors: 2e-7 relative in float, 1e-15 in double. NaN stays NaN.
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
  // Above kHighest the scale is 2^128 = infinity, as it has to be.
  static constexpr float kLowest = -87.0f, kHighest = 88.8f, kSaturated = 20.0f;
  static constexpr int kMantissa = 23, kBias = 127, kTerms = 7;
};
template <>
struct ExpConstants<double> {
  static constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLn2High = 6.93147180369123816490e-01;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kLowest = -708.0, kHighest = 709.8, kSaturated = 40.0;
  static constexpr int kMantissa = 52, kBias = 1023, kTerms = 13;
};

// exp(x) = scale * (1 + fraction), with fraction = exp(r) - 1. In this form an infinite scale gives
// infinity even where the fraction is negative.
template <class A>
struct ExpParts {
  Vec<A> scale, fraction;
};

template <class A>
FASTRNN_HD constexpr A inverse_factorial(int n) {
  A value = 1;
  for (int i = 2; i <= n; ++i) value *= A(i);
  return A(1) / value;
}

template <class A>
FASTRNN_HD ExpParts<A> exp_parts(Vec<A> x) {
  using C = ExpConstants<A>;
  using V = Vec<A>;
  using Bits = typename V::Bits;
  const V shifted = multiply_add(x, V(A(1.44269504088896340736)), V(C::kMagic));
  const V n = shifted - V(C::kMagic);
  const V r = multiply_add(n, V(-C::kLn2Low), multiply_add(n, V(-C::kLn2High), x));
  V series(inverse_factorial<A>(C::kTerms));
#pragma GCC unroll 16
  for (int i = C::kTerms - 1; i >= 2; --i)
    series = multiply_add(series, r, V(inverse_factorial<A>(i)));
  const Bits scale =
      ((Bits)shifted.v << C::kMantissa) + (typename VecTypes<A>::Bit(C::kBias) << C::kMantissa);
  return {V((typename V::Raw)scale), multiply_add(series * r, r, r)};
}

// The comparisons are false for NaN, which therefore passes through.
template <class A>
FASTRNN_HD Vec<A> clamp(Vec<A> x, A low, A high) {
  const Vec<A> raised(x.v < low ? Vec<A>(low).v : x.v);
  return Vec<A>(raised.v > high ? Vec<A>(high).v : raised.v);
}

// On |x|, with m = exp(2|x|) - 1: tanh = m / (m + 2) keeps its relative precision around zero, and
// 1 - 2 / (m + 2) rounds only once where the result is near 1, as its derivative 1 - tanh^2 needs.
template <class A>
FASTRNN_HD Vec<A> tanh_(Vec<A> x) {
  using C = ExpConstants<A>;
  using V = Vec<A>;
  using Bits = typename V::Bits;
  const Bits sign = (Bits)x.v & (Bits)V(A(-0.0)).v;
  const V magnitude((typename V::Raw)((Bits)x.v ^ sign));
  const ExpParts<A> e = exp_parts(clamp(magnitude + magnitude, A(0), C::kSaturated));
  const V m = multiply_add(e.scale, e.fraction, e.scale - V(A(1)));
  const Bits large = m.v > A(2);
  const V quotient = V(large ? V(A(2)).v : m.v) / (m + V(A(2)));
  const V result(large ? A(1) - quotient.v : quotient.v);
  return V((typename V::Raw)((Bits)result.v | sign));
}

template <class A>
FASTRNN_HD Vec<A> sigmoid_(Vec<A> x) {
  using C = ExpConstants<A>;
  const ExpParts<A> e = exp_parts(clamp(Vec<A>(-x.v), C::kLowest, C::kHighest));
  const Vec<A> one(A(1));
  return one / multiply_add(e.scale, e.fraction + one, one);
}

template <class A>
FASTRNN_HD Vec<A> relu_(Vec<A> x) {
  return Vec<A>(x.v < A(0) ? typename Vec<A>::Raw{} : x.v);
}

template <class A>
FASTRNN_HD Vec<A> drelu(Vec<A> y) {
  return Vec<A>(y.v > A(0) ? Vec<A>(A(1)).v : typename Vec<A>::Raw{});
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
