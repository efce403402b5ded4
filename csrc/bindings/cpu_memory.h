// Memory for what a layer call of the CPU backend leaves behind.
#pragma once

#include <ATen/core/Tensor.h>

namespace fastrnn {

// An uninitialised tensor. For a large one Linux is asked for huge pages: it comes fresh from the
// system at every call, and to enter it page by page takes as long as a good part of the kernels.
at::Tensor empty_pages(at::IntArrayRef sizes, const at::TensorOptions& options);

}  // namespace fastrnn
