// What a layer call of the CPU backend gets: plain pointers and sizes, no torch.
//
// Letters: T time, B batch, I input, H hidden, G gates, D directions, R width of h (P if projected,
// else H), N rows that exist (T * B, or the sum of batch sizes or lengths), L rows as the caller
// lays them out: the N, or with `order` T * batch, of which only those that exist are read or
// written. "S" is the storage type that `dtype` names; "A" is its accumulate type: double for
// float64, else float. Every array is contiguous in the order its shape is written. Nothing aliases
// anything else.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/layer_spec.h"

namespace fastrnn::cpu {

struct LayerShape {
  int cell;                // position in cells.def
  Dtype dtype;             // S
  int64_t T, B, I, H, R;   // R < H only for an LSTM with projection
  int D;                   // kMostDirections at most
  const int64_t* offsets;  // (T + 1): step t owns the rows offsets[t] .. offsets[t + 1] of the N;
                           // the number of rows per step never grows, and is B at t = 0
  int threads;             // upper bound on the threads to use, >= 1
  int forwards;            // so many directions run forwards in time, those that follow backwards
  int64_t batch;           // B, or with `order` the caller's batch size: B and rows without a step
  const int64_t* order;    // (B): row b of every step is the caller's batch row order[b]; or null:
                           // row b of step t is row offsets[t] + b of L = N
  const bool* resets;      // (N): no state crosses between this row's step and the one before it in
                           // time, nor from hx into a first step forwards; or null
  const void* operand_mask = nullptr;  // (D, batch, R) S: what h is multiplied with on its way to
                                       // w_hh, and in a cell without; or null
};

// One direction's parameters, all S.
struct DirectionWeights {
  const void* w_ih;                 // (G * H, I)
  const void* w_hh;                 // (G * H, R), or null where the cell has none
  const void* b_ih;                 // (G * H), or null; b_ih and b_hh come together
  const void* b_hh;                 // (G * H), or null
  const void* w_hr;                 // (R, H), or null when R == H
  const void* params[kMostParams];  // the cell's P: (H) each, gains of x and h (G * H)
};

struct ForwardParams {
  LayerShape shape;
  DirectionWeights weights[kMostDirections];  // D of them
  double scalars[kMostScalars];               // the cell's
  const void* x;                              // (L, I) S
  ForwardStates states;                       // carried: null when not saved; never wide
  void* output;                               // (L, D * R) S
  void* gates;  // (D, N, K, H) S, the cell's K saved values, with those of its norms; null: save
                // nothing
  Zoneout zoneout;
  void* given;       // (D, N, F, H) A, with zoneout: the states that backward reads after
                     // a step, as the cell gave them; null when not saved
  void* statistics;  // (D, N, 2 or 4) A, of the rows' norms (cell.h); null when not saved
  void* hidden;      // (D, N, H) S, h before the projection; null when not saved
  void* workspace;   // forward_workspace() bytes, 64-byte aligned, uninitialised
};

struct BackwardParams {
  LayerShape shape;
  DirectionWeights weights[kMostDirections];  // only w_hh, w_hr and params are read
  double scalars[kMostScalars];
  const void* grad_output;  // (L, D * R) S
  BackwardStates states;    // never wide
  const void* output;       // (L, D * R) S
  const void* gates;        // (D, N, K, H) S, as forward left it; null if K == 0
  Zoneout zoneout;
  const void* given;       // (D, N, F, H) A, as forward left it; or null
  const void* statistics;  // (D, N, 2 or 4) A, as forward left it; null without norms
  void* grad_gates;        // (D, N, E, G, H) S written; E = 1, or 2 (grad_x, then grad_h) where
                           // the cell's two gate gradients differ
  void* grad_units;  // (D, E * G + P, H) A written: of biases, then of parameters, where a gain
                     // of gates is G of the P; null: not wanted
  void* grad_h;      // (D, N, R) S written when projected: gradient of the projected h
  void* workspace;   // backward_workspace() bytes, 64-byte aligned, uninitialised
};

// c = a b, or c += a b, for one or two b of the same rows. All of a and b are of one storage type;
// c has the shape (M, N) and overlaps nothing else.
struct ProductParams {
  struct Side {
    int64_t N = 0;            // 0: there is none
    const void* b = nullptr;  // (K, N) with rows `ldb` apart
    float* c = nullptr;       // (M, N) with rows `ldc` apart
    int64_t ldb = 0, ldc = 0;
    // (M, N), dense: c in the storage type, instead of c, which holds sums until then; or null.
    void* rounded = nullptr;
  };
  int64_t M, K;
  const void* a;  // (M, K) with rows `lda` apart; transposed: (K, M) with rows `lda` apart
  int64_t lda;
  bool a_transposed;
  bool accumulate;  // add to what is in c
  int threads;      // upper bound
  Side sides[2];
  void* workspace;  // as a layer's
};

// Without a workspace: computes nothing and returns how large one has to be.
using ProductKernel = size_t (*)(const ProductParams&);

// The kernels of one instruction set, for the dtypes it serves.
struct Kernels {
  size_t (*forward_workspace)(const ForwardParams&);
  void (*forward)(const ForwardParams&);
  size_t (*backward_workspace)(const BackwardParams&);
  void (*backward)(const BackwardParams&);
  ProductKernel product_float32, product_bfloat16;  // null where there is none of the kind
};

}  // namespace fastrnn::cpu
