#include "../rebuild.cuh"

#include "../dispatch.h"
#include "../norm.cuh"
#include "../user_cells.h"

namespace fastrnn::cuda {

cudaError_t launch_rebuild(int cell, Dtype dtype, const Rebuild& rebuild, cudaStream_t stream) {
  if (const CellKernels* const own = user_kernels(cell, dtype))
    return own->rebuild(rebuild, stream);
  return with_cell(cell, [&](auto c) {
    using Cell = typename decltype(c)::type;
    return with_dtype(dtype, [&](auto s) {
      using Scalar = typename decltype(s)::type;
      if constexpr (Cell::kNorms > 0) {
        return rebuild_rows<Cell, Scalar>(rebuild, stream);
      } else if constexpr (Cell::kSaved > 0) {
        return rebuild_layer<Cell, Scalar>(rebuild, stream);
      } else {
        return cudaErrorInvalidValue;
      }
    });
  });
}

}  // namespace fastrnn::cuda
