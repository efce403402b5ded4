// One layer call as plain data, the same for every backend and for Python (fastrnn/_spec.py): what
// the numbers of its `spec` mean, and what stands where in its lists of tensors.
//
//   layer_forward(Tensor x, Tensor?[] given, Tensor[] hx, Tensor?[] weights, int[] spec,
//                 float[] scalars) -> (Tensor output, Tensor[] states, Tensor[] saved)
//   layer_backward(Tensor?[] grads, Tensor x, Tensor?[] given, Tensor[] hx, Tensor?[] weights,
//                  Tensor[] results, int[] spec, float[] scalars, bool[] needs)
//       -> (Tensor grad_x, Tensor[] grad_hx, Tensor[] grad_weights)
//
//   states   the final states, shaped like hx; with all_states then every state but h after each
//            step, shaped like the output with D * H features
//   saved    in this order and where the cell has them: gates (D, N, K, H), every state but h
//            after each step (D, N, S - 1, H), h before its projection (D, N, H)
//   grads    of the output and of `states`; None is zero
//   results  the output, then `saved`
//   needs    whether x, hx and weights need a gradient. What is not needed, or not there, comes
//            back as None, and from torch's operator as a tensor without elements
#pragma once

#include <cstdint>

namespace fastrnn {

// More of anything in a cell needs more room in structs that are passed by value.
constexpr int kMostGates = 8, kMostStates = 4, kMostParams = 8, kMostScalars = 4;

// Of `given`.
enum Given { kBatchSizes, kLengths, kResets, kGivens };

// Of a direction's `weights`, which are kFirstParam + P: the cell's own parameters come last.
enum Slot { kWih, kWhh, kBih, kBhh, kWhr, kFirstParam };

// What forward keeps for backward: nothing; all that it reads; or, on CUDA, the states alone, from
// which backward computes the rest again.
enum class Save : int { kNothing = 0, kEverything = 1, kStates = 2 };

struct LayerSpec {
  static constexpr int64_t kVersion = 1;  // of the meaning of all this: graphs outlive a release
  static constexpr int kNumbers = 5;      // version, cell, save, reverse, all_states

  int cell;  // position in cells.def
  Save save;
  bool reverse;     // the one direction there is runs backwards in time
  bool all_states;  // return every state of each step
};

// The arrays of a layer's states, by state, 0 being h. S is the storage type, A the accumulate
// type; L and N are rows as the kernels' params have them. Only the first S of each list are looked
// at.
struct ForwardStates {
  const void* initial[kMostStates];  // (D, batch, R or H) S
  void* last[kMostStates];           // (D, batch, R or H) S
  void* sequence[kMostStates];  // (L, D * H) S, after each step for the caller; null: not wanted
  void* carried;                // (D, N, S - 1, H) A, every state but h after each step
  bool wide;                    // initial and last are A, but for h
};

struct BackwardStates {
  const void* initial[kMostStates];        // as forward's
  const void* carried;                     // as forward left it
  const void* grad_last[kMostStates];      // (D, batch, R or H) S
  const void* grad_sequence[kMostStates];  // (L, D * H) S; null: none
  void* grad_initial[kMostStates];         // (D, batch, R or H) S; null: not wanted
  bool wide;                               // initial, grad_last and grad_initial are A, but for h
};

}  // namespace fastrnn
