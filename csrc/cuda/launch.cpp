#include "launch.h"

#include "dispatch.h"
#include "user_cells.h"

namespace fastrnn::cuda {

cudaError_t launch_forward(int cell, Dtype dtype, const StepKernel& kernel, const ForwardStep& step,
                           cudaStream_t stream) {
  if (const CellKernels* const own = user_kernels(cell, dtype))
    return own->forward(kernel, step, stream);
  return with_types(cell, dtype, [&](auto c, auto s) {
    return forward_step<typename decltype(c)::type, typename decltype(s)::type>(kernel, step,
                                                                                stream);
  });
}

cudaError_t launch_backward(int cell, Dtype dtype, const StepKernel& kernel,
                            const BackwardStep& step, cudaStream_t stream) {
  if (const CellKernels* const own = user_kernels(cell, dtype))
    return own->backward(kernel, step, stream);
  return with_types(cell, dtype, [&](auto c, auto s) {
    return backward_step<typename decltype(c)::type, typename decltype(s)::type>(kernel, step,
                                                                                 stream);
  });
}

}  // namespace fastrnn::cuda
