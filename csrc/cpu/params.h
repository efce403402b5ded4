// What a layer call of the CPU backend gets: plain pointers and sizes, no torch.
//
// Letters: T time, B batch, I input, H hidden, G gates, D directions, R width of h (P if projected,
// else H), N rows of x (T * B, or the sum of batch sizes of packed data). "S" is the storage type
// that `dtype` names; "A" is its accumulate type: double for float64, else float.
// Every array is contiguous in the order its shape is written. Nothing aliases anything else.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastrnn::cpu {

enum class Dtype : int { kFloat64, kFloat32, kBfloat16, kFloat16 };

struct LayerShape {
  int cell;                // position in cells.def
  Dtype dtype;             // S
  int64_t T, B, I, H, R;   // R < H only for an LSTM with projection
  int D;                   // 1, or 2 with the second direction running backwards in time
  const int64_t* offsets;  // (T + 1): step t owns the rows offsets[t] .. offsets[t + 1] of x;
                           // the number of rows per step never grows, and is B at t = 0
  int threads;             // upper bound on the threads to use, >= 1
};

// One direction's parameters, all S.
struct DirectionWeights {
  const void* w_ih;  // (G * H, I)
  const void* w_hh;  // (G * H, R)
  const void* b_ih;  // (G * H), or null; b_ih and b_hh come together
  const void* b_hh;  // (G * H), or null
  const void* w_hr;  // (R, H), or null when R == H
};

struct ForwardParams {
  LayerShape shape;
  DirectionWeights weights[2];  // D of them
  const void* x;                // (N, I) S
  const void* h0;               // (D, B, R) S
  const void* c0;               // (D, B, H) S; null for cells with one state
  void* output;                 // (N, D * R) S
  void* hn;                     // (D, B, R) S
  void* cn;                     // (D, B, H) S; null for cells with one state
  void* gates;                  // (D, N, K, H) S, the cell's K saved values; null: save nothing
  void* cells;                  // (D, N, H) A, c after each step; null when not saved
  void* hidden;                 // (D, N, H) S, h before the projection; null when not saved
  void* workspace;              // forward_workspace() bytes, 64-byte aligned, uninitialised
};

struct BackwardParams {
  LayerShape shape;
  DirectionWeights weights[2];  // only w_hh and w_hr are read
  const void* grad_output;      // (N, D * R) S
  const void* grad_hn;          // (D, B, R) S
  const void* grad_cn;          // (D, B, H) S; null for cells with one state
  const void* h0;               // (D, B, R) S
  const void* c0;               // (D, B, H) S; null for cells with one state
  const void* output;           // (N, D * R) S
  const void* gates;            // (D, N, K, H) S, as forward left it; null if K == 0
  const void* cells;            // (D, N, H) A, as forward left it; null if not saved
  void* grad_gates;  // (D, N, E, G, H) S written; E = 1, or 2 (grad_x, then grad_h) where
                     // the cell's two gate gradients differ
  void* grad_bias;   // (D, E, G * H) A written; null: not wanted
  void* grad_h0;     // (D, B, R) S written; null: not wanted
  void* grad_c0;     // (D, B, H) S written; null: not wanted, or one state
  void* grad_h;      // (D, N, R) S written when projected: gradient of the projected h
  void* workspace;   // backward_workspace() bytes, 64-byte aligned, uninitialised
};

// c = a b, or c += a b, for a and b of one storage type; c has the shape (M, N) and does not
// overlap a or b.
struct ProductParams {
  int64_t M, N, K;
  const void* a;  // (M, K) with rows `lda` apart; transposed: (K, M) with rows `lda` apart
  const void* b;  // (K, N) with rows `ldb` apart
  float* c;       // (M, N) with rows `ldc` apart
  int64_t lda, ldb, ldc;
  bool a_transposed;
  bool accumulate;  // add to what is in c
  int threads;      // upper bound
};

using ProductKernel = void (*)(const ProductParams&);

// The kernels of one instruction set, for the dtypes it serves.
struct Kernels {
  size_t (*forward_workspace)(const ForwardParams&);
  void (*forward)(const ForwardParams&);
  size_t (*backward_workspace)(const BackwardParams&);
  void (*backward)(const BackwardParams&);
  ProductKernel product_float32, product_bfloat16;  // null where there is none of the kind
};

}  // namespace fastrnn::cpu
