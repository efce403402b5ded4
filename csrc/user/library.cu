// What makes a library of a user's cell out of the step kernels of csrc/cuda
// (fastrnn/_kernels/cell_library.py).
#include "../cuda/instantiate.cuh"
#include "../cuda/rebuild.cuh"
#include "../cuda/user_cells.h"
#include "own_cell.h"

namespace fastrnn::cuda {
namespace {

template <class Scalar>
CellKernels own_kernels() {
  return {forward_step<OwnCell, Scalar>, backward_step<OwnCell, Scalar>,
          rebuild_layer<OwnCell, Scalar>};
}

}  // namespace
}  // namespace fastrnn::cuda

extern "C" __attribute__((visibility("default"))) bool fastrnn_user_kernels(
    size_t layout, fastrnn::cuda::UserCell* cell) {
  namespace cuda = fastrnn::cuda;
  if (layout != cuda::kLayout) return false;
  *cell = {fastrnn::own_info(),
           {cuda::own_kernels<double>(), cuda::own_kernels<float>(),
            cuda::own_kernels<__nv_bfloat16>(), cuda::own_kernels<__half>()}};
  return true;
}
