#include "gate.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/python_variable.h>

namespace fastrnn {
namespace {

// Which device a tensor is on is none of the gate's business: the lowest bits, one a backend.
uint64_t functionality(const at::Tensor& tensor) {
  return tensor.key_set().raw_repr() >> c10::num_backends;
}

}  // namespace

bool is_plain(const at::Tensor& tensor) {
  static const uint64_t ordinary = functionality(at::empty({0}));
  return (functionality(tensor) & ~ordinary) == 0;
}

bool are_plain(const pybind11::tuple& objects) {
  for (const pybind11::handle object : objects) {
    if (!THPVariable_CheckTypeExact(Py_TYPE(object.ptr()))) return false;
    if (!is_plain(THPVariable_Unpack(object.ptr()))) return false;
  }
  return true;
}

void require_plain(const at::Tensor& tensor, const char* function, const char* name) {
  TORCH_CHECK(is_plain(tensor), function, ": ", name, " must be an ordinary strided tensor, got ",
              tensor.key_set());
}

}  // namespace fastrnn
