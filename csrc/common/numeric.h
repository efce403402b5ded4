// Activations on the accumulate types float and double, and their derivatives written in terms of
// their outputs. A CPU vector type brings overloads in its own namespace; the cells find them by
// argument-dependent lookup.
#pragma once

#include <cmath>

#include "host_device.h"

namespace fastrnn {

FASTRNN_HD float tanh_(float x) { return ::tanhf(x); }
FASTRNN_HD double tanh_(double x) { return ::tanh(x); }

// exp(-x) overflows to infinity for very negative x, and 1 / infinity is the right answer, 0.
FASTRNN_HD float sigmoid_(float x) { return 1.0f / (1.0f + ::expf(-x)); }
FASTRNN_HD double sigmoid_(double x) { return 1.0 / (1.0 + ::exp(-x)); }

FASTRNN_HD float exp_(float x) { return ::expf(x); }
FASTRNN_HD double exp_(double x) { return ::exp(x); }
FASTRNN_HD float log_(float x) { return ::logf(x); }
FASTRNN_HD double log_(double x) { return ::log(x); }
FASTRNN_HD float quotient(float a, float b) { return a / b; }
FASTRNN_HD double quotient(double a, double b) { return a / b; }

// NaN where one of them is.
FASTRNN_HD float max_(float a, float b) { return a > b || a != a ? a : b; }
FASTRNN_HD double max_(double a, double b) { return a > b || a != a ? a : b; }
// 1 where a > b, else 0.
FASTRNN_HD float is_larger(float a, float b) { return a > b ? 1.0f : 0.0f; }
FASTRNN_HD double is_larger(double a, double b) { return a > b ? 1.0 : 0.0; }

// NaN passes through: the comparison is false and x itself is returned.
FASTRNN_HD float relu_(float x) { return x < 0.0f ? 0.0f : x; }
FASTRNN_HD double relu_(double x) { return x < 0.0 ? 0.0 : x; }

// min(x, 0) - log(1 + e^-|x|), without a difference of infinities.
FASTRNN_HD float log_sigmoid_(float x) {
  return ::fminf(x, 0.0f) - ::logf(1.0f + ::expf(-::fabsf(x)));
}
FASTRNN_HD double log_sigmoid_(double x) { return ::fmin(x, 0.0) - ::log(1.0 + ::exp(-::fabs(x))); }
template <class A>
FASTRNN_HD A log_sigmoid_(A x) {
  const A minus = A(0) - x;
  return A(0) - max_(A(0), minus) - log_(A(1) + exp_(A(0) - max_(x, minus)));
}

// Derivatives at the point whose output is y. An infinite gradient times a slope of 0 is NaN, as in
// torch.
template <class A>
FASTRNN_HD A dtanh(A y) {
  return A(1) - y * y;
}
template <class A>
FASTRNN_HD A dsigmoid(A y) {
  return y * (A(1) - y);
}
template <class A>
FASTRNN_HD A dlog_sigmoid(A y) {
  return A(1) - exp_(y);
}
// The gradient that passes a relu of output y: chosen, not multiplied, so that none is left where
// the slope is 0, whatever comes in. At NaN it passes, as in torch.
FASTRNN_HD float relu_backward(float grad, float y) { return y <= 0.0f ? 0.0f : grad; }
FASTRNN_HD double relu_backward(double grad, double y) { return y <= 0.0 ? 0.0 : grad; }

}  // namespace fastrnn
