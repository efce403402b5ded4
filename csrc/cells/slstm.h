// sLSTM (Beck et al. 2024), gates in the order z i f o; n normalises, and m keeps the exponents in
// range. The forget gate is a sigmoid or an exponential.
//   log f = log sigmoid(x + h)  or  x + h,  m' = max(log f + m, i),
//   c' = e^(log f + m - m') c + e^(i - m') tanh(z),  n' = e^(log f + m - m') n + e^(i - m'),
//   h' = sigmoid(o) c' / n'
#pragma once

#include "derive.h"

namespace fastrnn {

struct SlstmNames {
  static constexpr const char* kGates[] = {"z", "i", "f", "o"};
  // With m as good as minus infinity the first step forgets c and n whatever its gates are, and n'
  // is 1; every storage type has the number.
  static constexpr State kStates[] = {{"h", 0}, {"c", 0}, {"n", 0}, {"m", -60000}};

  template <class A>
  static FASTRNN_CELL void step(const In<A>& in, A* next, bool exponential) {
    const A z = in.x[0] + in.h[0], i = in.x[1] + in.h[1], f = in.x[2] + in.h[2];
    const A kept = (exponential ? f : log_sigmoid_(f)) + in.prev[3];
    next[3] = max_(kept, i);
    const A keep = exp_(kept - next[3]), take = exp_(i - next[3]);
    next[1] = keep * in.prev[1] + take * tanh_(z);
    next[2] = keep * in.prev[2] + take;
    next[0] = sigmoid_(in.x[3] + in.h[3]) * quotient(next[1], next[2]);
  }
};

// No templates: nvcc takes the length of an array in one for 0.
struct SlstmForward : SlstmNames {
  template <class A>
  static FASTRNN_CELL void forward(const In<A>& in, A* next) {
    step(in, next, false);
  }
};
struct SlstmExpForward : SlstmNames {
  template <class A>
  static FASTRNN_CELL void forward(const In<A>& in, A* next) {
    step(in, next, true);
  }
};
using Slstm = Derived<SlstmForward>;
using SlstmExp = Derived<SlstmExpForward>;

}  // namespace fastrnn
