// A layer call on the CUDA backend: its checked arguments, in the terms of csrc/cuda.
#pragma once

#include "../cuda/layer.h"
#include "../cuda/plan.h"
#include "layer_args.h"

namespace fastrnn::cuda {

// Instead of what plan() says, for as long as it is set: for measuring one kernel against another
// and for testing each. Process-wide. What has one form does not heed it: a projected LSTM's
// backward, cells without W_hh or with norms, and a forward pass with an operand mask.
void override_plan(std::optional<StepKernel> kernel);

// Whether torch's setting for RNNs allows tf32; for one step that for matrix products has to as
// well, for the step may be a cell's, and torch's cells follow that one.
bool uses_tf32(Dtype dtype, int64_t steps);

struct Call : LayerArgs {
  Call(const char* function, const GivenTensors& tensors, at::IntArrayRef spec,
       at::ArrayRef<double> scalars);

  Dtype dtype;
  bool tf32;
  Shape shape;
  RowSchedule row_schedule;
  Schedule schedule;

  at::Tensor x_rows() const { return x.view({N, I}); }
  // In the dtype of the call, or of the accumulation.
  at::Tensor empty(at::IntArrayRef sizes) const;
  at::Tensor empty_accumulate(at::IntArrayRef sizes) const;
  // For what the kernels fill step by step: zero at steps that do not exist.
  at::Tensor filled_by_steps(at::IntArrayRef sizes) const;
  PlanQuery query(bool backward, int capability) const;
  StepKernel plan_for(bool backward, int capability) const;
  // Of the kernels' `moments`; undefined where no row is masked. Launches what writes them.
  at::Tensor moments(cudaStream_t stream) const;
  // What both passes tell a step.
  template <class Step>
  void describe(Step& step) const {
    step.shape = shape;
    std::copy(std::begin(scalars), std::end(scalars), step.scalars);
    if constexpr (requires { step.zoneout; }) step.zoneout = zoneout();
    for (int64_t d = 0; d < D; ++d) {
      for (int k = 0; k < cell.params; ++k)
        step.params[d][k] = weight(d, kFirstParam + k).data_ptr();
    }
  }
  void report(const Status& status) const;  // throws unless it is a success
};

// A 2-dimensional tensor with unit stride along its rows.
Matrix matrix(const at::Tensor& tensor);
// Matrix d of a contiguous 3-dimensional tensor: a view would be an operator of torch, and each
// takes the host a microsecond or more.
Matrix matrix(const at::Tensor& tensor, int64_t d);
// Of a contiguous tensor's values from `first` on; null for an undefined tensor.
void* data(const at::Tensor& tensor, int64_t first = 0);
// Null when there is no such tensor.
void* data(const Tensors& tensors, size_t index);

}  // namespace fastrnn::cuda
