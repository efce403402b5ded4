// Rows that are picked before or after the kernels, on the device, with nothing waiting for it.
#pragma once

#include "cuda_call.h"

namespace fastrnn::cuda {

// x, (N, I), with zeros at steps that do not exist, where it may hold anything.
at::Tensor existing_x(const Call& call);

// The value of a state that every row of a direction started its step from, of those after the
// steps: (N, W), zeros at steps that do not exist.
at::Tensor previous_states(const Call& call, const at::Tensor& states, int state, int64_t d);
// The same of h, from the output.
at::Tensor previous_h(const Call& call, const at::Tensor& output, int64_t d);

// The same with the operand mask, where there is one.
at::Tensor operands(const Call& call, const at::Tensor& output, int64_t d);

// h_n of rows with at least one step, if there are lengths: (D, B, R).
void write_final_h(const Call& call, const at::Tensor& output, const at::Tensor& hn);

}  // namespace fastrnn::cuda
