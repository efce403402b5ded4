// A layer call on the CUDA backend: one layer, a whole sequence, all directions.
#pragma once

#include <array>
#include <optional>
#include <tuple>

#include "cuda_call.h"

namespace fastrnn::cuda {

// As layer_spec.h says. In 16-bit types states besides h may be float32, and then their final
// values and gradients are.
std::tuple<at::Tensor, Tensors, Tensors> layer_forward(const GivenTensors& tensors,
                                                       at::IntArrayRef spec,
                                                       at::ArrayRef<double> scalars);

std::tuple<std::optional<at::Tensor>, std::optional<Tensors>, std::optional<OptionalTensors>>
layer_backward(const OptionalTensors& grads, const GivenTensors& tensors, const Tensors& results,
               at::IntArrayRef spec, at::ArrayRef<double> scalars, std::array<bool, 3> needs);

}  // namespace fastrnn::cuda
