// The contract of a cell: the pointwise maths of one time step, written once for CPU and CUDA.
//
// A cell is a stateless struct with these constants
//
//   kGates     number of gates G; the packed gate order is torch's (lstm.h, gru.h, rnn.h say it)
//   kStates    number of states S; state[0] is h, the one that the recurrent product reads
//   kSaved     number K of values per hidden unit that backward needs besides the states
//   kSharedGateGrad   grad_x == grad_h for every gate, so one copy of the gate gradients serves
//   kDirectGrad       backward's grad_prev[0] is not always zero: h' takes h past the gates
//   kBackwardPrev     bit s set: backward reads the state s from before the step
//   kBackwardNext     bit s set: backward reads the state s from after the step
//
// and two functions over an accumulate type A (float, double, or a CPU vector of them):
//
//   forward(x[G], h[G], prev[S], next[S], saved[K])
//     x: gate pre-activations from the input,  x = W_ih x_t + b_ih
//     h: gate pre-activations from the hidden state,  h = W_hh h_{t-1} + b_hh
//     saved: a function of x and h alone, so that it can be made again without a state
//   backward(saved[K], prev[S], next[S], grad_next[S], grad_x[G], grad_h[G], grad_prev[S])
//     grad_next: gradients of the states after the step, everything that flows in already added
//     grad_prev: what reaches the previous states through the pointwise maths alone; the part of
//                grad_prev[0] that comes through W_hh (grad_h W_hh) is the kernel's to add
//
// x and h stay apart because a GRU's reset gate multiplies only the hidden part. Inputs and outputs
// never alias. Kernels convert storage types on load and store; a cell sees accumulate types only.
// An LSTM with projection has state[0] = o * tanh(c), before the projection; kernels project.
#pragma once

#include "../common/numeric.h"

namespace fastrnn {

constexpr unsigned kStateH = 1u << 0;
constexpr unsigned kStateC = 1u << 1;

}  // namespace fastrnn
