// LSTM with peepholes (Gers and Schmidhuber 2000), gates in the order i f g o.
//   i, f = sigmoid(x + h + p c),  g = tanh(x + h),  c' = f c + i g,
//   o = sigmoid(x + h + p c'),  h' = o tanh(c')
#pragma once

#include "derive.h"

namespace fastrnn {

struct PeepholeForward {
  static constexpr const char* kGates[] = {"i", "f", "g", "o"};
  static constexpr State kStates[] = {{"h", 0}, {"c", 0}};
  static constexpr const char* kParams[] = {"peephole_i", "peephole_f", "peephole_o"};

  template <class A>
  static FASTRNN_CELL void forward(const In<A>& in, A* next) {
    const A *x = in.x, *h = in.h, *p = in.params, c = in.prev[1];
    const A i = sigmoid_(x[0] + h[0] + p[0] * c);
    const A f = sigmoid_(x[1] + h[1] + p[1] * c);
    next[1] = f * c + i * tanh_(x[2] + h[2]);
    next[0] = sigmoid_(x[3] + h[3] + p[2] * next[1]) * tanh_(next[1]);
  }
};
using Peephole = Derived<PeepholeForward>;

}  // namespace fastrnn
