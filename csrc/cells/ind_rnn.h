// IndRNN (Li et al. 2018), one gate, whose units see of the state before their own value alone.
//   h' = relu(x + u h)
#pragma once

#include "derive.h"

namespace fastrnn {

struct IndRnnForward {
  static constexpr const char* kGates[] = {"h"};
  static constexpr State kStates[] = {{"h", 0}};
  static constexpr const char* kParams[] = {"weight_hh"};
  static constexpr bool kRecurrent = false;

  template <class A>
  static FASTRNN_CELL void forward(const In<A>& in, A* next) {
    next[0] = relu_(in.x[0] + in.h[0] + in.params[0] * in.prev[0]);
  }
};
using IndRnn = Derived<IndRnnForward>;

}  // namespace fastrnn
