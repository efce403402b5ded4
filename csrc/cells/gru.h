// GRU, gates in torch's order r z n, reset applied after the product (Cho et al. 2014, in the form
// torch and cuDNN compute).
//   r, z = sigmoid(x + h),  n = tanh(x + r h),  h' = n + z (h_prev - n)
#pragma once

#include "cell.h"

namespace fastrnn {

struct GruNames {
  static constexpr const char* kGates[] = {"r", "z", "n"};
  static constexpr State kStates[] = {{"h", 0}};
};

template <class Names>
struct GruOf : Counted<Names> {
  static constexpr int kSaved = 4;  // r z n after their activations, then the hidden part of n
  static constexpr bool kSharedGateGrad = false;
  static constexpr bool kDirectGrad = true;
  static constexpr unsigned kBackwardPrev = kStateH;
  static constexpr unsigned kBackwardNext = 0;
  static constexpr bool kReadsH = true;
  static constexpr bool kSavedReadsState = false;

  template <class A>
  static FASTRNN_HD void forward(const In<A>& in, A* next, A* saved) {
    const A *x = in.x, *h = in.h;
    const A r = sigmoid_(x[0] + h[0]);
    const A z = sigmoid_(x[1] + h[1]);
    const A n = tanh_(x[2] + r * h[2]);
    next[0] = n + z * (in.prev[0] - n);
    saved[0] = r;
    saved[1] = z;
    saved[2] = n;
    saved[3] = h[2];
  }

  template <class A>
  static FASTRNN_HD void backward(const A* saved, const In<A>& in, const A* /*next*/,
                                  const A* grad_next, A* grad_x, A* grad_h, A* grad_prev,
                                  A* /*grad_params*/) {
    const A r = saved[0], z = saved[1], n = saved[2], hidden_n = saved[3];
    const A dn = grad_next[0] * (A(1) - z) * dtanh(n);
    grad_x[0] = dn * hidden_n * dsigmoid(r);
    grad_x[1] = grad_next[0] * (in.prev[0] - n) * dsigmoid(z);
    grad_x[2] = dn;
    grad_h[0] = grad_x[0];
    grad_h[1] = grad_x[1];
    grad_h[2] = dn * r;
    grad_prev[0] = grad_next[0] * z;
  }
};

struct Gru : GruOf<GruNames> {};

}  // namespace fastrnn
