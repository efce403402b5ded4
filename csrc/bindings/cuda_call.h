// The arguments that forward and backward have in common, checked once and taken apart.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "../cuda/cell_info.h"
#include "../cuda/layer.h"

namespace fastrnn::cuda {

using Tensors = std::vector<at::Tensor>;

// One direction's weights; b_ih, b_hh and w_hr are undefined where the layer has none.
struct Weights {
  at::Tensor w_ih, w_hh, b_ih, b_hh, w_hr;
};

// Instead of what plan() says, for as long as it is set: for measuring one kernel against another
// and for testing each. Process-wide. A projected LSTM's backward, which has one form, does not
// heed it.
void override_plan(std::optional<StepKernel> kernel);

struct Call {
  // `function` begins every message. Everything is made contiguous.
  Call(const char* function, int cell, const at::Tensor& x,
       const std::optional<at::Tensor>& batch_sizes, const Tensors& hx, const Tensors& weights);

  const char* function;
  int cell;
  CellInfo info;
  Dtype dtype;
  bool tf32;
  Shape shape;
  Schedule schedule;
  at::Tensor x;  // (N, I)
  Tensors hx;
  std::vector<Weights> weights;
  bool biased, projected;

  // In the dtype of the call, or of the accumulation.
  at::Tensor empty(at::IntArrayRef sizes) const;
  at::Tensor empty_accumulate(at::IntArrayRef sizes) const;
  // `tensor`, contiguous, of this shape, on the call's device, in its dtype.
  at::Tensor checked(const at::Tensor& tensor, const char* name, at::IntArrayRef sizes) const;
  StepKernel plan_for(bool backward, int capability) const;
  void report(const Status& status) const;  // throws unless it is a success
};

// A 2-dimensional tensor with unit stride along its rows.
Matrix matrix(const at::Tensor& tensor);
// Null for an undefined tensor.
void* data(const at::Tensor& tensor);
// Null when there is no such tensor.
void* data(const Tensors& tensors, size_t index);

}  // namespace fastrnn::cuda
