// From numbers that Python knows (a cell, a type) to types.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "../cells/cell_info.h"
#include "params.h"

namespace fastrnn::cuda {

template <class T>
struct Type {
  using type = T;
};

// Calls f(Type<Scalar>) for the storage type.
template <class F>
cudaError_t with_dtype(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::kFloat64:
      return f(Type<double>{});
    case Dtype::kFloat32:
      return f(Type<float>{});
    case Dtype::kBFloat16:
      return f(Type<__nv_bfloat16>{});
    case Dtype::kFloat16:
      return f(Type<__half>{});
  }
  return cudaErrorInvalidValue;
}

// Calls f(Type<Cell>) for the cell at this position of cells.def.
template <class F>
cudaError_t with_cell(int cell, F f) {
  int position = 0;
#define FASTRNN_CELL_ENTRY(type, mode) \
  if (cell == position++) return f(Type<type>{});
#include "../cells/cells.def"
#undef FASTRNN_CELL_ENTRY
  return cudaErrorInvalidValue;
}

}  // namespace fastrnn::cuda
