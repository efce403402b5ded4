#include "launch.h"

#include "dispatch.h"
#include "user_cells.h"

namespace fastrnn::cuda {

cudaError_t launch_forward(int cell, Dtype dtype, const StepKernel& kernel, const ForwardStep& step,
                           cudaStream_t stream) {
  if (const CellKernels* const own = user_kernels(cell, dtype))
    return own->forward(kernel, step, stream);
  return with_cell(cell, [&](auto c) {
    using Cell = typename decltype(c)::type;
    return with_dtype(dtype, [&](auto s) {
      using Scalar = typename decltype(s)::type;
      if constexpr (Cell::kNorms > 0) {
        return kernel.fused ? cudaErrorInvalidValue : forward_normed<Cell, Scalar>(step, stream);
      } else {
        return forward_step<Cell, Scalar>(kernel, step, stream);
      }
    });
  });
}

cudaError_t launch_backward(int cell, Dtype dtype, const StepKernel& kernel,
                            const BackwardStep& step, cudaStream_t stream) {
  if (const CellKernels* const own = user_kernels(cell, dtype))
    return own->backward(kernel, step, stream);
  return with_cell(cell, [&](auto c) {
    using Cell = typename decltype(c)::type;
    return with_dtype(dtype, [&](auto s) {
      using Scalar = typename decltype(s)::type;
      if constexpr (Cell::kNorms > 0) {
        return kernel.fused ? cudaErrorInvalidValue : backward_normed<Cell, Scalar>(step, stream);
      } else {
        return backward_step<Cell, Scalar>(kernel, step, stream);
      }
    });
  });
}

cudaError_t launch_mask_operand(Dtype dtype, const ForwardStep& step, cudaStream_t stream) {
  return with_dtype(dtype,
                    [&](auto s) { return mask_operand<typename decltype(s)::type>(step, stream); });
}

cudaError_t launch_gather_projected(Dtype dtype, const BackwardStep& step, cudaStream_t stream) {
  return with_dtype(
      dtype, [&](auto s) { return gather_projected<typename decltype(s)::type>(step, stream); });
}

}  // namespace fastrnn::cuda
