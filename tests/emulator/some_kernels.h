// In the place of inst/, for a program of its own: only some kernels, to keep the build short. GRUs
// are float64 (step) or float32 (resident) with multiply-adds, LSTMs bfloat16 with mma, and float32
// with norms.
#pragma once

#include "../../csrc/cells/cell_info.h"
#include "../../csrc/cuda/instantiate.cuh"
#include "../../csrc/cuda/layer.h"
#include "../../csrc/cuda/resident_cluster.cuh"
#include "../../csrc/cuda/resident_cta.cuh"
#include "../../csrc/cuda/resident_grid.cuh"

namespace fastrnn::cuda {

cudaError_t launch_forward(int cell, Dtype dtype, const StepKernel& kernel, const ForwardStep& step,
                           cudaStream_t stream) {
  if (kCells[cell].statistics > 0) return forward_step<LayerNormLstm, float>(kernel, step, stream);
  return dtype == Dtype::kFloat64 ? forward_step<Gru, double>(kernel, step, stream)
                                  : forward_step<Lstm, __nv_bfloat16>(kernel, step, stream);
}

cudaError_t launch_backward(int cell, Dtype dtype, const StepKernel& kernel,
                            const BackwardStep& step, cudaStream_t stream) {
  if (kCells[cell].statistics > 0) return backward_step<LayerNormLstm, float>(kernel, step, stream);
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

template <class Step>
cudaError_t run_sequence(int, Dtype dtype, const Sequence<Step>& p, cudaStream_t stream,
                         bool launch) {
  return dtype == Dtype::kFloat32 ? run_sequence<Gru, float>(p, stream, launch)
                                  : run_sequence<Lstm, __nv_bfloat16>(p, stream, launch);
}
template cudaError_t run_sequence(int, Dtype, const ForwardSequence&, cudaStream_t, bool);
template cudaError_t run_sequence(int, Dtype, const BackwardSequence&, cudaStream_t, bool);

}  // namespace fastrnn::cuda
