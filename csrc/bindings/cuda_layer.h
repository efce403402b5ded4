// A layer call on the CUDA backend: one layer, a whole sequence, all directions.
#pragma once

#include <array>
#include <optional>
#include <tuple>

#include "cuda_call.h"

namespace fastrnn::cuda {

// What forward keeps for backward: everything it needs, or without the gates, which backward then
// rebuilds.
enum class Save : int { kNothing = 0, kEverything = 1, kStates = 2 };

// (output, hn, saved). 16-bit types: c_n has the type of c_0, which may be float32, and so have
// their gradients. With `cells`, hn ends with c of every step. `saved` has, in this order and
// where the cell has them: gates, c, h before the projection.
std::tuple<at::Tensor, Tensors, Tensors> layer_forward(int cell, const at::Tensor& x,
                                                       const std::optional<at::Tensor>& batch_sizes,
                                                       const Tensors& hx, const Tensors& weights,
                                                       Save save, const Timing& timing, bool cells);

// (grad_x, grad_hx, grad_weights), each where needs[] asks for it. grad_hn has what hn had. `saved`
// may come from either mode: their numbers of tensors tell them apart.
std::tuple<std::optional<at::Tensor>, std::optional<Tensors>, std::optional<Tensors>>
layer_backward(int cell, const at::Tensor& grad_output, const Tensors& grad_hn, const at::Tensor& x,
               const std::optional<at::Tensor>& batch_sizes, const Tensors& hx,
               const Tensors& weights, const at::Tensor& output, const Tensors& saved,
               std::array<bool, 3> needs, const Timing& timing);

}  // namespace fastrnn::cuda
