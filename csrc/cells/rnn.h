// Elman RNN, one gate (Elman 1990):  h' = tanh(x + h)  or  h' = relu(x + h).
#pragma once

#include "cell.h"

namespace fastrnn {

struct Tanh {
  template <class A>
  static FASTRNN_HD A value(A x) {
    return tanh_(x);
  }
  template <class A>
  static FASTRNN_HD A backward(A grad, A y) {
    return grad * dtanh(y);
  }
};

struct Relu {
  template <class A>
  static FASTRNN_HD A value(A x) {
    return relu_(x);
  }
  template <class A>
  static FASTRNN_HD A backward(A grad, A y) {
    return relu_backward(grad, y);
  }
};

struct RnnNames {
  static constexpr const char* kGates[] = {"h"};
  static constexpr State kStates[] = {{"h", 0}};
};

template <class Activation>
struct Rnn : Counted<RnnNames> {
  static constexpr int kSaved = 0;
  static constexpr bool kSharedGateGrad = true;
  static constexpr bool kDirectGrad = false;
  static constexpr unsigned kBackwardPrev = 0;
  static constexpr unsigned kBackwardNext = kStateH;
  static constexpr bool kReadsH = false;
  static constexpr bool kSavedReadsState = false;

  template <class A>
  static FASTRNN_HD void forward(const In<A>& in, A* next, A* /*saved*/) {
    next[0] = Activation::value(in.x[0] + in.h[0]);
  }

  template <class A>
  static FASTRNN_HD void backward(const A* /*saved*/, const In<A>& /*in*/, const A* next,
                                  const A* grad_next, A* grad_x, A* grad_h, A* grad_prev,
                                  A* /*grad_params*/) {
    grad_x[0] = Activation::backward(grad_next[0], next[0]);
    grad_h[0] = grad_x[0];
    grad_prev[0] = A(0);
  }
};

using RnnTanh = Rnn<Tanh>;
using RnnRelu = Rnn<Relu>;

}  // namespace fastrnn
