// In the place of inst/, for a program of its own: only some kernels, to keep the build short. GRUs
// are float64 (step) or float32 (resident) with multiply-adds, LSTMs bfloat16 with mma, and float32
// with norms.
#pragma once

#include <utility>

#include "../../csrc/cells/cell_info.h"
#include "../../csrc/cuda/layer.h"
#include "../../csrc/cuda/norm.cuh"
#include "../../csrc/cuda/resident_cluster.cuh"
#include "../../csrc/cuda/resident_cta.cuh"
#include "../../csrc/cuda/resident_grid.cuh"
#include "../../csrc/cuda/step.cuh"

namespace fastrnn::cuda {

cudaError_t launch_forward(int cell, Dtype dtype, const StepKernel& kernel, const ForwardStep& step,
                           cudaStream_t stream) {
  if (kCells[cell].statistics > 0) return forward_normed<LayerNormLstm, float>(step, stream);
  return dtype == Dtype::kFloat64 ? forward_step<Gru, double>(kernel, step, stream)
                                  : forward_step<Lstm, __nv_bfloat16>(kernel, step, stream);
}

cudaError_t launch_backward(int cell, Dtype dtype, const StepKernel& kernel,
                            const BackwardStep& step, cudaStream_t stream) {
  if (kCells[cell].statistics > 0) return backward_normed<LayerNormLstm, float>(step, stream);
  return dtype == Dtype::kFloat64 ? backward_step<Gru, double>(kernel, step, stream)
                                  : backward_step<Lstm, __nv_bfloat16>(kernel, step, stream);
}

cudaError_t launch_mask_operand(Dtype dtype, const ForwardStep& step, cudaStream_t stream) {
  return dtype == Dtype::kFloat64 ? mask_operand<double>(step, stream)
                                  : mask_operand<__nv_bfloat16>(step, stream);
}

cudaError_t launch_gather_projected(Dtype, const BackwardStep& step, cudaStream_t stream) {
  return gather_projected<__nv_bfloat16>(step, stream);
}

template <class Sequence, class F>
cudaError_t with_kernel(Dtype dtype, const Sequence& p, F f) {
  using Float = std::pair<Gru, float>;
  using Half = std::pair<Lstm, __nv_bfloat16>;
  const bool wide = dtype == Dtype::kFloat32;
  switch (p.team.tier) {
    case Tier::kCta:
      return wide ? f(Float{}, std::integral_constant<Tier, Tier::kCta>{})
                  : f(Half{}, std::integral_constant<Tier, Tier::kCta>{});
    case Tier::kCluster:
      return wide ? f(Float{}, std::integral_constant<Tier, Tier::kCluster>{})
                  : f(Half{}, std::integral_constant<Tier, Tier::kCluster>{});
    case Tier::kGrid:
      return wide ? f(Float{}, std::integral_constant<Tier, Tier::kGrid>{})
                  : f(Half{}, std::integral_constant<Tier, Tier::kGrid>{});
    case Tier::kStep:
      break;
  }
  return cudaErrorInvalidValue;
}

cudaError_t resident_forward(int, Dtype dtype, const ForwardSequence& p, cudaStream_t stream,
                             Residency& residency) {
  return with_kernel(dtype, p, [&](auto types, auto tier) {
    using Types = decltype(types);
    return resident_forward<typename Types::first_type, typename Types::second_type,
                            decltype(tier)::value>(p, stream, residency);
  });
}

cudaError_t resident_backward(int, Dtype dtype, const BackwardSequence& p, cudaStream_t stream,
                              Residency& residency) {
  return with_kernel(dtype, p, [&](auto types, auto tier) {
    using Types = decltype(types);
    return resident_backward<typename Types::first_type, typename Types::second_type,
                             decltype(tier)::value>(p, stream, residency);
  });
}

}  // namespace fastrnn::cuda
