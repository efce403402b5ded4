// The values that a cell saves for its backward, made a second time: for all steps at once, after
// the forward pass, from the gates that the states around the steps give.
#pragma once

#include <cuda_runtime.h>

#include "params.h"

namespace fastrnn::cuda {

struct Rebuild {
  Shape shape;
  // Read only.
  const void* x_gates;                // (D, N, G*H) scalar: the input product, without its bias
  const void* h_gates;                // (D, N, G*H) scalar: the recurrent product, without its bias
  const void* b_ih[kMostDirections];  // (G*H) scalar, or null
  const void* b_hh[kMostDirections];  // (G*H) scalar, or null
  const void* params[kMostDirections][kMostParams];  // (H) scalar each
  double scalars[kMostScalars];
  // Before each step, of cells whose saved values depend on them: h (D, N, H) scalar, and the
  // others accumulate.
  const void* prev[kMostStates];
  // Written.
  void* saved;  // (D, N, K, H) scalar. May be x_gates when K == G
};

// cudaErrorInvalidValue if there is no such cell or type, or if the cell saves nothing.
cudaError_t launch_rebuild(int cell, Dtype dtype, const Rebuild& rebuild, cudaStream_t stream);

}  // namespace fastrnn::cuda
