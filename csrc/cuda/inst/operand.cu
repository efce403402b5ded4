#include "../dispatch.h"
#include "../step.cuh"

namespace fastrnn::cuda {

cudaError_t launch_mask_operand(Dtype dtype, const ForwardStep& step, cudaStream_t stream) {
  return with_dtype(dtype,
                    [&](auto s) { return mask_operand<typename decltype(s)::type>(step, stream); });
}

}  // namespace fastrnn::cuda
