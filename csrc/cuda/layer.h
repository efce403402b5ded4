// The time loops: one layer over one sequence, all directions, as launches on one stream. No torch:
// memory comes from the caller, and matrix products outside of the kernels from its Library.
#pragma once

#include <string>

#include "launch.h"
#include "resident.h"
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

// One launch for the whole sequence, unless the tier is kStep; see Sequence for the pointers.
struct Resident {
  Team team{};
  const void* weights[kMostDirections] = {};
  const int64_t* offsets = nullptr;
  void* exchange = nullptr;
  unsigned* arrivals = nullptr;
};

struct LayerForward {
  int cell;
  Dtype dtype;
  StepKernel kernel;
  const Schedule& schedule;
  ForwardStep step;                  // all but step_rows
  void* w_hr[kMostDirections] = {};  // (R, H) scalar, of a projected LSTM
  bool lengths = false;  // rows have lengths: hn of a projected LSTM is left to the caller
  Resident resident = {};
};

struct LayerBackward {
  int cell;
  Dtype dtype;
  StepKernel kernel;
  const Schedule& schedule;
  BackwardStep step;                 // all but step_rows
  void* w_hh[kMostDirections] = {};  // (G*H, R) scalar; read unless the kernel is fused
  void* w_hr[kMostDirections] =
      {};               // (R, H) scalar, of a projected LSTM: kernel.fused must be false
  bool grad_h0 = true;  // finish grad_h0, which costs one more product
  Resident resident = {};
};

Status run(const LayerForward& layer, Library& library, cudaStream_t stream);
Status run(const LayerBackward& layer, Library& library, cudaStream_t stream);

Status run_resident(const LayerForward& layer, cudaStream_t stream);
Status run_resident(const LayerBackward& layer, cudaStream_t stream);

// Whether a resident launch could run on the current device: cudaSuccess, or why not.
cudaError_t room_for(int cell, Dtype dtype, const Team& team, const Shape& shape, bool backward);

}  // namespace fastrnn::cuda
