// Cells as forwards alone, for the derivation: those that csrc/cells has written by hand, and one
// with a scalar, which no user's cell has.
#pragma once

#include "../../../csrc/cells/derive.h"
#include "../../../csrc/cells/gru.h"
#include "../../../csrc/cells/lstm.h"
#include "../../../csrc/cells/rnn.h"

namespace fastrnn {

struct LstmForward : LstmNames {
  template <class A>
  static FASTRNN_CELL void forward(const In<A>& in, A* next) {
    const A *x = in.x, *h = in.h;
    next[1] = sigmoid_(x[1] + h[1]) * in.prev[1] + sigmoid_(x[0] + h[0]) * tanh_(x[2] + h[2]);
    next[0] = sigmoid_(x[3] + h[3]) * tanh_(next[1]);
  }
};

struct GruForward : GruNames {
  template <class A>
  static FASTRNN_CELL void forward(const In<A>& in, A* next) {
    const A r = sigmoid_(in.x[0] + in.h[0]), z = sigmoid_(in.x[1] + in.h[1]);
    const A n = tanh_(in.x[2] + r * in.h[2]);
    next[0] = n + z * (in.prev[0] - n);
  }
};

struct TanhForward : RnnNames {
  template <class A>
  static FASTRNN_CELL void forward(const In<A>& in, A* next) {
    next[0] = tanh_(in.x[0] + in.h[0]);
  }
};

struct ReluForward : RnnNames {
  template <class A>
  static FASTRNN_CELL void forward(const In<A>& in, A* next) {
    next[0] = relu_(in.x[0] + in.h[0]);
  }
};

// With a scalar of the call, or with its value.
template <bool kGiven>
struct Halved : RnnNames {
  static constexpr const char* kScalars[] = {"rate"};

  template <class A>
  static FASTRNN_CELL void forward(const In<A>& in, A* next) {
    const A rate = kGiven ? in.scalars[0] : A(0.5);
    next[0] = in.prev[0] + rate * (tanh_(in.x[0] + in.h[0]) - in.prev[0]);
  }
};

// The constants that are written by hand.
template <class Written, class Forward>
constexpr bool same_constants() {
  using Made = Derived<Forward>;
  return Made::kGates == Written::kGates && Made::kStates == Written::kStates &&
         Made::kParams == Written::kParams && Made::kScalars == Written::kScalars &&
         Made::kSaved == Written::kSaved && Made::kSharedGateGrad == Written::kSharedGateGrad &&
         Made::kDirectGrad == Written::kDirectGrad &&
         Made::kBackwardPrev == Written::kBackwardPrev &&
         Made::kBackwardNext == Written::kBackwardNext && Made::kReadsH == Written::kReadsH &&
         Made::kSavedReadsState == Written::kSavedReadsState;
}
static_assert(same_constants<Lstm, LstmForward>());
static_assert(same_constants<Gru, GruForward>());
static_assert(same_constants<RnnTanh, TanhForward>());
static_assert(same_constants<RnnRelu, ReluForward>());

}  // namespace fastrnn
