// The contract of a cell: the pointwise maths of one time step, written once for CPU and CUDA.
//
// A cell is a stateless struct. Written are its names
//
//   kGates[]    of the blocks of W_ih and W_hh, in packed order: G of them
//   kStates[]   {name, initial}: S of them. [0] is h, which W_hh multiplies; the others are
//               carried in the accumulate type. `initial` holds after a reset, and for h it is 0
//   kParams[]   of parameters of one number a unit, (H): P of them; none where left out
//   kScalars[]  of numbers of the call, which get no gradient; none where left out
//   kRecurrent  false: there is no W_hh, so units meet in no product. True where left out
//   kNorms      2: what the cell sees as x and h are rows of products after a layer normalisation,
//               see below; 3: a state is normalised, too. 0 where left out
//
// and forward, over an accumulate type A (float, double, a CPU vector of them, or a Symbol), with
// + - * quotient max_ exp_ log_ tanh_ sigmoid_ log_sigmoid_ relu_ and constants A(1):
//
//   template <class A>
//   static FASTRNN_CELL void forward(const In<A>& in, A* next)
//
// Derived<Cell> (derive.h) makes the rest while it compiles. Or a cell writes it itself:
//
//   kSaved            number K of values a unit that backward needs besides the states
//   kSharedGateGrad   grad_x == grad_h for every gate, so one copy of the gate gradients serves
//   kDirectGrad       backward's grad_prev[0] is not always zero: h' takes h past the gates
//   kBackwardPrev     bit s set: backward reads the state s from before the step
//   kBackwardNext     bit s set: backward reads the state s from after the step
//   kReadsH           forward reads in.prev[0]
//   kSavedReadsState  saved is a function of the carried states too, not of in.x and in.h alone
//   forward(in, next, saved)
//   backward(saved, in, next, grad_next, grad_x, grad_h, grad_prev, grad_params)
//     in.x and in.h are not there
//     grad_next: gradients of the states after the step, everything that flows in already added
//     grad_prev: what reaches the previous states through the pointwise maths alone; the part of
//                grad_prev[0] that comes through W_hh (grad_h W_hh) is the kernel's to add
//
// x and h stay apart because a GRU's reset gate multiplies only the hidden part. Inputs and outputs
// never alias. Kernels convert storage types on load and store; a cell sees accumulate types only.
// With a projection state[0] is h before it, and in.prev[0] is not there; kernels project.
//
// Layer normalisation (Ba et al. 2016) takes v, a row, to u = (v - mean v) / sqrt(var v + epsilon),
// and u to u gain + bias. Kernels do that to W_ih x_t and to W_hh h over all G * H values of a row:
// kParams[0] and [1] are their gains, (G * H) each, b_ih and b_hh their biases. grad_x and grad_h
// are the gradients of the results. With kNorms = 3 they take the state 1 to u over the H units of
// a row, once it is there for all of them: forward then leaves in next[0] what h' is made of, and
// backward gets the gradient of that in grad_next[0], and in grad_next[1] all that reaches state 1;
//   emit(given, u, params)           h' of next[0], u and the parameters from kParams[2] on
//   emit_backward(given, u, params, grad_h, grad_given, grad_u, grad_params)
#pragma once

#include "../common/layer_spec.h"
#include "../common/numeric.h"

namespace fastrnn {

struct State {
  const char* name;
  double initial;
};

// Of one unit in one step.
template <class A>
struct In {
  const A* x;       // [G] pre-activations from the input,  W_ih x_t + b_ih
  const A* h;       // [G] pre-activations from the hidden state,  W_hh h_{t-1} + b_hh; without
                    // W_hh, b_hh alone
  const A* prev;    // [S] states before the step
  const A* params;  // [P]
  const A* scalars;
};

constexpr unsigned kStateH = 1u << 0;

constexpr double kNormEpsilon = 1e-5;

// The place of a state among those whose bits are set.
constexpr int place_among(unsigned states, int state) {
  int place = 0;
  for (int s = 0; s < state; ++s) place += states >> s & 1;
  return place;
}

// The numbers of a cell's names, under the names that they are known by to the kernels.
template <class Cell>
struct Counted {
  using Names = Cell;
  static constexpr int kGates = std::extent_v<decltype(Cell::kGates)>;
  static constexpr int kStates = std::extent_v<decltype(Cell::kStates)>;
  static constexpr int kCarried = kStates - 1;
  static constexpr int kParams = [] {
    if constexpr (requires { Cell::kParams; }) return int(std::extent_v<decltype(Cell::kParams)>);
    return 0;
  }();
  static constexpr int kScalars = [] {
    if constexpr (requires { Cell::kScalars; }) return int(std::extent_v<decltype(Cell::kScalars)>);
    return 0;
  }();
  static constexpr bool kRecurrent = [] {
    if constexpr (requires { Cell::kRecurrent; }) return Cell::kRecurrent;
    return true;
  }();
  static constexpr int kNorms = [] {
    if constexpr (requires { Cell::kNorms; }) return Cell::kNorms;
    return 0;
  }();
  // Parameters that are as wide as all gates; the first ones.
  static constexpr int kGains = kNorms > 0 ? 2 : 0;
  // Numbers of a row that backward needs of its norms: 1 / deviation of x and of h; of the state
  // the mean and that.
  static constexpr int kStatistics = kNorms == 3 ? 4 : kNorms;
  template <int state>
  static constexpr double kInitial = Cell::kStates[state].initial;

  static_assert(kGates <= kMostGates && kStates <= kMostStates && kParams <= kMostParams &&
                kScalars <= kMostScalars);
  static_assert(kNorms == 0 || (kRecurrent && (kNorms == 2 || kNorms == 3)));
  static_assert(Cell::kStates[0].initial == 0);
};

// Values of a unit that forward keeps: the cell's, then u of each gate's x and h.
template <class Cell>
constexpr int kSavedWithNorms = Cell::kSaved + Cell::kGains * Cell::kGates;

}  // namespace fastrnn
