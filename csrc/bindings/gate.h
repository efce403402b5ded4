// Which tensors the kernels may read: their memory must hold the values that the tensor stands for.
#pragma once

#include <ATen/core/Tensor.h>

namespace fastrnn {

// Whether the tensor has memory, and an ordinary tensor's dispatch keys and no others. Sparse,
// quantised and nested tensors, wrapper subclasses, functorch's wrappers and lazy conjugates,
// negatives and zeros have a key of their own.
bool is_plain(const at::Tensor& tensor);

// The tensor with its lazy conjugate or negative made. Raises unless the result is_plain. Whatever
// takes a data pointer asks first.
at::Tensor plain(const at::Tensor& tensor, const char* function, const char* name);

}  // namespace fastrnn
