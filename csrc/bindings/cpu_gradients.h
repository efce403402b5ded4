// The gradients that are plain matrix products of a layer's gate gradients.
#pragma once

#include "cpu_rows.h"

namespace fastrnn {

// What the backward kernel left, for the N rows of LayerRows.
struct LayerGradients {
  at::Tensor gates;  // (D, N, E, G * H): gradients of x gates and, last, of h gates
  at::Tensor
      units;     // (D, (E * G + P) * H) in the accumulate type: of biases, of parameters; or none
  at::Tensor h;  // (D, N, R), gradient of the projected h, or undefined
  at::Tensor hidden;  // (D, N, H), forward's h before the projection, or undefined
  Tensors states;     // of hx, or empty
};

// In the shape of x.
at::Tensor input_gradient(const LayerRows& rows, const LayerGradients& grads);

// By slot, as the layer's weights.
OptionalTensors weight_gradients(const LayerRows& rows, const LayerGradients& grads,
                                 const at::Tensor& output);

}  // namespace fastrnn
