// From numbers that Python knows (a cell, a type) to the instantiated launchers.
#include "launch.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../cells/cell_info.h"

namespace fastrnn::cuda {

namespace {

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
#define FASTRNN_CELL(type, mode) \
  if (cell == position++) return f(Type<type>{});
#include "../cells/cells.def"
#undef FASTRNN_CELL
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_forward(int cell, Dtype dtype, const StepKernel& kernel, const ForwardStep& step,
                           cudaStream_t stream) {
  return with_cell(cell, [&](auto c) {
    return with_dtype(dtype, [&](auto s) {
      return forward_step<typename decltype(c)::type, typename decltype(s)::type>(kernel, step,
                                                                                  stream);
    });
  });
}

cudaError_t launch_backward(int cell, Dtype dtype, const StepKernel& kernel,
                            const BackwardStep& step, cudaStream_t stream) {
  return with_cell(cell, [&](auto c) {
    return with_dtype(dtype, [&](auto s) {
      return backward_step<typename decltype(c)::type, typename decltype(s)::type>(kernel, step,
                                                                                   stream);
    });
  });
}

cudaError_t launch_gather_projected(Dtype dtype, const BackwardStep& step, cudaStream_t stream) {
  return with_dtype(
      dtype, [&](auto s) { return gather_projected<typename decltype(s)::type>(step, stream); });
}

}  // namespace fastrnn::cuda
