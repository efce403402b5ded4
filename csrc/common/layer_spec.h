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
//            after each step (D, N, S - 1, H), with zoneout the states that backward reads after a
//            step as the cell gave them (D, N, F, H), statistics of the rows that are normalised
//            (D, N, 2 or 4), h before its projection (D, N, H)
//   scalars  the cell's; with zoneout then the rates of h and of the other states
//   grads    of the output and of `states`; None is zero
//   results  the output, then `saved`
//   needs    whether x, hx and weights need a gradient. What is not needed, or not there, comes
//            back as None, and from torch's operator as a tensor without elements
#pragma once

#include <cstdint>

namespace fastrnn {

// More of anything in a cell needs more room in structs that are passed by value.
constexpr int kMostGates = 8, kMostStates = 4, kMostParams = 8, kMostScalars = 4;
constexpr int kMostDirections = 16;

// Of a layer's tensors: the storage type.
enum class Dtype : int { kFloat64, kFloat32, kBfloat16, kFloat16 };

// Of `given`. The operand mask, (D, B, R), is what h is multiplied with on its way to W_hh, the
// same in every step (Gal and Ghahramani 2016); without W_hh, what the cell sees of h is.
// Seeds, (D, B) int64, are a key for each row, of what zoneout draws.
enum Given { kBatchSizes, kLengths, kResets, kOperandMask, kSeeds, kGivens };

// Of a direction's `weights`, which are kFirstParam + P: the cell's own parameters come last.
enum Slot { kWih, kWhh, kBih, kBhh, kWhr, kFirstParam };

// What forward keeps for backward: nothing; all that it reads; or, on CUDA, the states alone, from
// which backward computes the rest again.
enum class Save : int { kNothing = 0, kEverything = 1, kStates = 2 };

struct LayerSpec {
  static constexpr int64_t kVersion = 2;  // of the meaning of all this: graphs outlive a release
  static constexpr int kNumbers = 6;      // version, cell, save, forwards, all_states, first_step

  int cell;  // position in cells.def
  Save save;
  int forwards;        // so many directions run forwards in time, those that follow backwards
  bool all_states;     // return every state of each step
  int64_t first_step;  // what is step 0 here, in the sequence of which this is a part

  bool backwards(int64_t direction) const { return direction >= forwards; }
};

// Zoneout (Krueger et al. 2017): after a step a unit's h keeps its value from before with the first
// rate, and all its other states together with the second. Without seeds, their expectation: the
// mean of both values, weighted with the rates.
struct Zoneout {
  bool on;
  double rates[2];
  uint32_t thresholds[2];  // of the rates (philox.h)
  const int64_t* seeds;    // (D, B), by the caller's batch row; or null
  int64_t first_step;
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
