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
  template <int state>
  static constexpr double kInitial = Cell::kStates[state].initial;

  static_assert(kGates <= kMostGates && kStates <= kMostStates && kParams <= kMostParams &&
                kScalars <= kMostScalars);
  static_assert(Cell::kStates[0].initial == 0);
};

}  // namespace fastrnn
