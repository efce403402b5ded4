// Memory for what a layer call of the CPU backend works in and leaves behind.
#pragma once

#include <ATen/core/Tensor.h>

namespace fastrnn {

// An uninitialised tensor. A large one comes from memory that earlier calls have given back, as far
// as there is some: fresh from the system, it would have to be entered page by page, which takes as
// long as a good part of the kernels.
at::Tensor empty_block(at::IntArrayRef sizes, const at::TensorOptions& options);

// So many bytes for a kernel to work in.
inline at::Tensor scratch(size_t bytes) {
  return empty_block({int64_t(bytes)}, at::TensorOptions(at::kByte));
}

// The tensor itself if it is contiguous, else a copy in such memory that is.
at::Tensor dense(const at::Tensor& tensor);

// Bytes that are kept for later calls, and how many may be at most: the environment variable
// FASTRNN_CPU_CACHE_MB in MiB, or 256 MiB.
int64_t cached_bytes();
int64_t cache_limit();

}  // namespace fastrnn
