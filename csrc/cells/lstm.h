// LSTM, gates in torch's order i f g o (Hochreiter and Schmidhuber 1997; forget gate: Gers 2000).
//   i, f, o = sigmoid(x + h),  g = tanh(x + h),  c' = f c + i g,  h' = o tanh(c')
#pragma once

#include "cell.h"

namespace fastrnn {

struct LstmNames {
  static constexpr const char* kGates[] = {"i", "f", "g", "o"};
  static constexpr State kStates[] = {{"h", 0}, {"c", 0}};
};

struct Lstm : Counted<LstmNames> {
  static constexpr int kSaved = 4;  // i f g o, after their activations
  static constexpr bool kSharedGateGrad = true;
  static constexpr bool kDirectGrad = false;
  static constexpr unsigned kBackwardPrev = 1u << 1;
  static constexpr unsigned kBackwardNext = 1u << 1;
  static constexpr bool kReadsH = false;
  static constexpr bool kSavedReadsState = false;

  template <class A>
  static FASTRNN_HD void forward(const In<A>& in, A* next, A* saved) {
    const A *x = in.x, *h = in.h;
    const A i = sigmoid_(x[0] + h[0]);
    const A f = sigmoid_(x[1] + h[1]);
    const A g = tanh_(x[2] + h[2]);
    const A o = sigmoid_(x[3] + h[3]);
    next[1] = f * in.prev[1] + i * g;
    next[0] = o * tanh_(next[1]);
    saved[0] = i;
    saved[1] = f;
    saved[2] = g;
    saved[3] = o;
  }

  template <class A>
  static FASTRNN_HD void backward(const A* saved, const In<A>& in, const A* next,
                                  const A* grad_next, A* grad_x, A* grad_h, A* grad_prev,
                                  A* /*grad_params*/) {
    const A i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const A tanh_c = tanh_(next[1]);
    const A dc = grad_next[1] + grad_next[0] * o * dtanh(tanh_c);
    grad_x[0] = dc * g * dsigmoid(i);
    grad_x[1] = dc * in.prev[1] * dsigmoid(f);
    grad_x[2] = dc * i * dtanh(g);
    grad_x[3] = grad_next[0] * tanh_c * dsigmoid(o);
    for (int k = 0; k < kGates; ++k) grad_h[k] = grad_x[k];
    grad_prev[0] = A(0);
    grad_prev[1] = dc * f;
  }
};

}  // namespace fastrnn
