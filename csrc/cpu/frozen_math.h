// Activations for inference on several vectors side by side: one vector alone waits for the latency
// of each instruction. Their error is 1e-7 of 1, not of the result: near 0 tanh loses relative
// precision.
#pragma once

#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"
#include "vec_math.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <int N>
struct Lanes {
  Vec<float> v[N];

  Lanes() = default;
  FASTRNN_HD explicit Lanes(float s) {
    for_each<N>([&](auto i) { v[i] = Vec<float>(s); });
  }
};

// The results of f on each vector.
template <int N, class F>
FASTRNN_HD Lanes<N> each(const F& f) {
  Lanes<N> result;
  for_each<N>([&](auto i) { result.v[i] = f(i); });
  return result;
}

template <int N>
FASTRNN_HD Lanes<N> operator+(const Lanes<N>& a, const Lanes<N>& b) {
  return each<N>([&](auto i) { return a.v[i] + b.v[i]; });
}
template <int N>
FASTRNN_HD Lanes<N> operator-(const Lanes<N>& a, const Lanes<N>& b) {
  return each<N>([&](auto i) { return a.v[i] - b.v[i]; });
}
template <int N>
FASTRNN_HD Lanes<N> operator*(const Lanes<N>& a, const Lanes<N>& b) {
  return each<N>([&](auto i) { return a.v[i] * b.v[i]; });
}
template <int N>
FASTRNN_HD Lanes<N> multiply_add(const Lanes<N>& a, const Lanes<N>& b, const Lanes<N>& c) {
  return each<N>([&](auto i) { return multiply_add(a.v[i], b.v[i], c.v[i]); });
}

// x * factor, kept within +-limit; NaN stays NaN.
template <int N>
FASTRNN_HD Lanes<N> within(const Lanes<N>& x, float factor, float limit) {
  const Vec<float> scale(factor);
  return each<N>([&](auto i) { return at_most(at_least(x.v[i] * scale, -limit), limit); });
}

// Of arguments within +-40.
template <int N>
FASTRNN_HD Lanes<N> exp_of(const Lanes<N>& x) {
#if FASTRNN_LEVEL >= 2  // has a scaling by powers of two
  using V = Vec<float>;
  using C = ExpConstants<float>;
  const V log2_e(1.44269504088896340736f), high(-C::kLn2High), low(-C::kLn2Low);
  const Lanes<N> n = each<N>([&](auto i) {
    return V((V::Raw)_mm512_roundscale_ps((__m512)(x.v[i] * log2_e).v, _MM_FROUND_TO_NEAREST_INT));
  });
  const Lanes<N> r = each<N>(
      [&](auto i) { return multiply_add(n.v[i], low, multiply_add(n.v[i], high, x.v[i])); });
  constexpr int kTerms = 6;
  Lanes<N> series(inverse_factorial<float>(kTerms));
  for_each<kTerms>([&](auto term) {
    series = multiply_add(series, r, Lanes<N>(inverse_factorial<float>(kTerms - 1 - term)));
  });
  return each<N>(
      [&](auto i) { return V((V::Raw)_mm512_scalef_ps((__m512)series.v[i].v, (__m512)n.v[i].v)); });
#else
  return each<N>([&](auto i) {
    const auto e = exp_parts(x.v[i]);
    const Vec<float> one(1.0f);
    return e.scale * multiply_add(multiply_add(e.series, e.r, one), e.r, one);
  });
#endif
}

template <int N>
FASTRNN_HD Lanes<N> reciprocal(const Lanes<N>& x) {
#if FASTRNN_LEVEL >= 2
  using V = Vec<float>;
  const Lanes<N> rough =
      each<N>([&](auto i) { return V((V::Raw)_mm512_rcp14_ps((__m512)x.v[i].v)); });
  return each<N>([&](auto i) { return V(rough.v[i].v * (2.0f - x.v[i].v * rough.v[i].v)); });
#else
  return each<N>([&](auto i) { return quotient(Vec<float>(1.0f), x.v[i]); });
#endif
}

// Beyond these arguments sigmoid and tanh are 0, 1 or -1 to float's precision.
constexpr float kSigmoidLimit = 40, kTwiceTanhLimit = 18;

template <int N>
FASTRNN_HD Lanes<N> sigmoid_(const Lanes<N>& x) {
  return reciprocal(exp_of(within(x, -1, kSigmoidLimit)) + Lanes<N>(1));
}
template <int N>
FASTRNN_HD Lanes<N> tanh_(const Lanes<N>& x) {
  const Lanes<N> e = exp_of(within(x, 2, kTwiceTanhLimit)), one(1);
  return (e - one) * reciprocal(e + one);
}
template <int N>
FASTRNN_HD Lanes<N> relu_(const Lanes<N>& x) {
  return each<N>([&](auto i) { return relu_(x.v[i]); });
}
// sigmoid(x) * tanh(y), with one reciprocal.
template <int N>
FASTRNN_HD Lanes<N> sigmoid_tanh(const Lanes<N>& x, const Lanes<N>& y) {
  const Lanes<N> a = exp_of(within(x, -1, kSigmoidLimit));
  const Lanes<N> e = exp_of(within(y, 2, kTwiceTanhLimit)), one(1);
  return (e - one) * reciprocal((e + one) * (a + one));
}

// A step of a cell without what backward would need.
template <class Cell, class A>
FASTRNN_HD void step_of(const In<A>& in, A* next) {
  if constexpr (std::is_same_v<Cell, Lstm>) {  // lstm.h's with two reciprocals less
    const A *x = in.x, *h = in.h;
    next[1] =
        multiply_add(sigmoid_(x[1] + h[1]), in.prev[1], sigmoid_tanh(x[0] + h[0], x[2] + h[2]));
    next[0] = sigmoid_tanh(x[3] + h[3], next[1]);
  } else {
    A saved[Cell::kSaved > 0 ? Cell::kSaved : 1];
    Cell::forward(in, next, saved);
  }
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
