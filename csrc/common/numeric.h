// Activations on the accumulate types float and double, and their derivatives written in terms of
// their outputs. A CPU vector type brings overloads of tanh_ and sigmoid_ in its own namespace;
// the cells find them by argument-dependent lookup.
#pragma once

#include <cmath>

#include "host_device.h"

namespace fastrnn {

FASTRNN_HD float tanh_(float x) { return ::tanhf(x); }
FASTRNN_HD double tanh_(double x) { return ::tanh(x); }

// exp(-x) overflows to infinity for very negative x, and 1 / infinity is the right answer, 0.
FASTRNN_HD float sigmoid_(float x) { return 1.0f / (1.0f + ::expf(-x)); }
FASTRNN_HD double sigmoid_(double x) { return 1.0 / (1.0 + ::exp(-x)); }

// NaN passes through: the comparison is false and x itself is returned.
FASTRNN_HD float relu_(float x) { return x < 0.0f ? 0.0f : x; }
FASTRNN_HD double relu_(double x) { return x < 0.0 ? 0.0 : x; }

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
// The gradient that passes a relu of output y: chosen, not multiplied, so that none is left where
// the slope is 0, whatever comes in. At NaN it passes, as in torch.
FASTRNN_HD float relu_backward(float grad, float y) { return y <= 0.0f ? 0.0f : grad; }
FASTRNN_HD double relu_backward(double grad, double y) { return y <= 0.0 ? 0.0 : grad; }

}  // namespace fastrnn
