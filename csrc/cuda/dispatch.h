// From numbers that Python knows (a cell, a type) to types.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "../cells/cell_info.h"
#include "params.h"

namespace fastrnn::cuda {

// Calls f(std::type_identity<Scalar>) for the storage type.
template <class F>
cudaError_t with_dtype(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::kFloat64:
      return f(std::type_identity<double>{});
    case Dtype::kFloat32:
      return f(std::type_identity<float>{});
    case Dtype::kBfloat16:
      return f(std::type_identity<__nv_bfloat16>{});
    case Dtype::kFloat16:
      return f(std::type_identity<__half>{});
  }
  return cudaErrorInvalidValue;
}

// Calls f(std::type_identity<Cell>, std::type_identity<Scalar>) for the cell at this position of
// cells.def and the storage type.
template <class F>
cudaError_t with_types(int cell, Dtype dtype, F f) {
  int position = 0;
#define FASTRNN_CELL_ENTRY(type, mode) \
  if (cell == position++)              \
    return with_dtype(dtype, [&](auto s) { return f(std::type_identity<type>{}, s); });
#include "../cells/cells.def"
#undef FASTRNN_CELL_ENTRY
  return cudaErrorInvalidValue;
}

}  // namespace fastrnn::cuda
