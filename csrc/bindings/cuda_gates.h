// The gates of all steps of a layer at once.
#pragma once

#include "cuda_call.h"
#include "cuda_context.h"

namespace fastrnn::cuda {

// x W_ih^T of every row and direction, without the bias: (D, N, G*H).
at::Tensor input_product(const Call& call, Library& library);

// What the cell saves, (D, N, K, H), from the layer's input, its output, (N, D * R), and the other
// states after each step, `carried`; launches what makes it. Rows of steps that do not exist hold
// anything.
at::Tensor rebuilt_gates(const Call& call, const at::Tensor& output, const at::Tensor& carried,
                         const Context& context);

}  // namespace fastrnn::cuda
