// A layer call on the CUDA backend: one layer, a whole sequence, all directions.
#pragma once

#include <array>
#include <optional>
#include <tuple>

#include "cuda_call.h"

namespace fastrnn::cuda {

// (output, hn, saved); `saved` is empty unless `save`. With `cells`, hn ends with c of every step.
std::tuple<at::Tensor, Tensors, Tensors> layer_forward(int cell, const at::Tensor& x,
                                                       const std::optional<at::Tensor>& batch_sizes,
                                                       const Tensors& hx, const Tensors& weights,
                                                       bool save, const Timing& timing, bool cells);

// (grad_x, grad_hx, grad_weights), each where needs[] asks for it. grad_hn has what hn had.
std::tuple<std::optional<at::Tensor>, std::optional<Tensors>, std::optional<Tensors>>
layer_backward(int cell, const at::Tensor& grad_output, const Tensors& grad_hn, const at::Tensor& x,
               const std::optional<at::Tensor>& batch_sizes, const Tensors& hx,
               const Tensors& weights, const at::Tensor& output, const Tensors& saved,
               std::array<bool, 3> needs, const Timing& timing);

}  // namespace fastrnn::cuda
