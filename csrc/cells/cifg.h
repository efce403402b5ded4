// LSTM with coupled input and forget gates (Greff et al. 2017), gates in the order i g o.
//   i, o = sigmoid(x + h),  g = tanh(x + h),  c' = (1 - i) c + i g,  h' = o tanh(c')
#pragma once

#include "derive.h"

namespace fastrnn {

struct CifgForward {
  static constexpr const char* kGates[] = {"i", "g", "o"};
  static constexpr State kStates[] = {{"h", 0}, {"c", 0}};

  template <class A>
  static FASTRNN_CELL void forward(const In<A>& in, A* next) {
    const A *x = in.x, *h = in.h, c = in.prev[1];
    const A i = sigmoid_(x[0] + h[0]);
    next[1] = (A(1) - i) * c + i * tanh_(x[1] + h[1]);
    next[0] = sigmoid_(x[2] + h[2]) * tanh_(next[1]);
  }
};
using Cifg = Derived<CifgForward>;

}  // namespace fastrnn
