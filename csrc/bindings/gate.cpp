#include "gate.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/resolve_conj.h>
#include <ATen/ops/resolve_neg.h>
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
  if ((functionality(tensor) & ~ordinary) != 0) return false;
  const bool has_memory = tensor.has_storage() && tensor.storage().data() != nullptr;
  return has_memory || tensor.numel() == 0 || tensor.is_meta();
}

bool are_plain(const pybind11::tuple& objects) {
  for (const pybind11::handle object : objects) {
    if (!THPVariable_CheckTypeExact(Py_TYPE(object.ptr()))) return false;
    if (!is_plain(THPVariable_Unpack(object.ptr()))) return false;
  }
  return true;
}

at::Tensor plain(const at::Tensor& tensor, const char* function, const char* name) {
  if (is_plain(tensor)) return tensor;
  const at::Tensor made = at::resolve_neg(at::resolve_conj(tensor));
  TORCH_CHECK(is_plain(made), function, ": ", name, " must be an ordinary strided tensor, got ",
              tensor.key_set());
  return made;
}

}  // namespace fastrnn
