// Where a call runs: its device, its stream, the library that makes its matrix products. The CUDA
// backend's bindings know the device through this class alone; tests/emulator implements it a
// second time, and so runs the bindings themselves without a GPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "../cuda/layer.h"
#include "../cuda/tiers.h"

namespace fastrnn::cuda {

class Context {
 public:
  // `like` is any tensor of the call. Its device stays current while this object lives, and its
  // dtype is that of all products; `tf32` lets fp32 products be rounded to tf32.
  Context(const at::Tensor& like, Dtype dtype, bool tf32);
  ~Context();

  static bool serves(const at::Tensor& tensor);
  cudaStream_t stream() const;
  bool is_captured() const;  // into a CUDA graph
  Library& blas() const;
  Device device() const;
  static const char* error_text(cudaError_t error);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fastrnn::cuda
