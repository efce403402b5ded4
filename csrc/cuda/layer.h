// The time loops: one layer over one sequence, all directions, as launches on one stream. No torch:
// memory comes from the caller, and matrix products outside of the kernels from its Library.
#pragma once

#include <string>

#include "launch.h"
#include "schedule.h"

namespace fastrnn::cuda {

// Row-major, `stride` elements from row to row.
struct Matrix {
  void* data;
  int64_t rows, cols, stride;
};

enum class Transpose { kNeither, kLeft, kRight };

class Library {
 public:
  virtual ~Library() = default;
  // out = a b, or out += a b; the transposed operand is given as it lies in memory. Throws.
  virtual void product(const Matrix& out, const Matrix& a, const Matrix& b, Transpose transpose,
                       bool add) = 0;
};

struct Status {
  cudaError_t error = cudaSuccess;
  std::string kernel;  // name and shape of the launch that failed
};

struct LayerForward {
  int cell;
  Dtype dtype;
  StepKernel kernel;
  const Schedule& schedule;
  ForwardStep step;                 // all but the ticks
  void* w_hr[kMaxDirections] = {};  // (R, H) scalar, of a projected LSTM
};

struct LayerBackward {
  int cell;
  Dtype dtype;
  StepKernel kernel;
  const Schedule& schedule;
  BackwardStep step;                // all but the ticks
  void* w_hh[kMaxDirections] = {};  // (G*H, R) scalar; read unless the kernel is fused
  void* w_hr[kMaxDirections] =
      {};               // (R, H) scalar, of a projected LSTM: kernel.fused must be false
  bool grad_h0 = true;  // finish grad_h0, which costs one more product
};

Status run(const LayerForward& layer, Library& library, cudaStream_t stream);
Status run(const LayerBackward& layer, Library& library, cudaStream_t stream);

}  // namespace fastrnn::cuda
