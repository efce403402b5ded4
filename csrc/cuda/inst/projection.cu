#include "../dispatch.h"
#include "../step.cuh"

namespace fastrnn::cuda {

cudaError_t launch_gather_projected(Dtype dtype, const BackwardStep& step, cudaStream_t stream) {
  return with_dtype(
      dtype, [&](auto s) { return gather_projected<typename decltype(s)::type>(step, stream); });
}

}  // namespace fastrnn::cuda
