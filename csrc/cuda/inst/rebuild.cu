#include "../rebuild.cuh"

#include "../dispatch.h"
#include "../norm.cuh"
#include "../user_cells.h"

namespace fastrnn::cuda {

cudaError_t launch_rebuild(int cell, Dtype dtype, const Rebuild& rebuild, cudaStream_t stream) {
  if (const CellKernels* const own = user_kernels(cell, dtype))
    return own->rebuild(rebuild, stream);
  return with_types(cell, dtype, [&](auto c, auto s) {
    using Cell = typename decltype(c)::type;
    using Scalar = typename decltype(s)::type;
    if constexpr (Cell::kNorms > 0) {
      return rebuild_rows<Cell, Scalar>(rebuild, stream);
    } else {
      return rebuild_layer<Cell, Scalar>(rebuild, stream);
    }
  });
}

}  // namespace fastrnn::cuda
