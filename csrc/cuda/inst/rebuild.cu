#include "../rebuild.cuh"

#include "../dispatch.h"
#include "../user_cells.h"

namespace fastrnn::cuda {

cudaError_t launch_rebuild(int cell, Dtype dtype, const Rebuild& rebuild, cudaStream_t stream) {
  if (const CellKernels* const own = user_kernels(cell, dtype))
    return own->rebuild(rebuild, stream);
  return with_cell(cell, [&](auto c) {
    return with_dtype(dtype, [&](auto s) {
      return rebuild_layer<typename decltype(c)::type, typename decltype(s)::type>(rebuild, stream);
    });
  });
}

}  // namespace fastrnn::cuda
