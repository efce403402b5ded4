#include "gate.h"

#include <ATen/ops/resolve_conj.h>
#include <ATen/ops/resolve_neg.h>

namespace fastrnn {
namespace {

// Of tensors with memory, whatever their device, and within inference mode or outside.
constexpr c10::DispatchKeySet kOrdinary =
    c10::DispatchKeySet({c10::DispatchKey::Dense, c10::DispatchKey::ADInplaceOrView,
                         c10::DispatchKey::AutogradFunctionality}) |
    c10::autocast_dispatch_keyset |
    c10::DispatchKeySet(c10::DispatchKeySet::RAW, c10::full_backend_mask);

constexpr bool is_ordinary(c10::DispatchKeySet keys) { return kOrdinary.has_all(keys); }

using c10::DispatchKey;
static_assert(is_ordinary(c10::DispatchKeySet({DispatchKey::CPU, DispatchKey::ADInplaceOrView,
                                               DispatchKey::AutogradCPU,
                                               DispatchKey::AutocastCPU})));
static_assert(is_ordinary(c10::DispatchKeySet({DispatchKey::CUDA, DispatchKey::ADInplaceOrView,
                                               DispatchKey::AutogradCUDA,
                                               DispatchKey::AutocastCUDA})));
static_assert(!is_ordinary(c10::DispatchKeySet({DispatchKey::CPU, DispatchKey::Negative})));
static_assert(!is_ordinary(c10::DispatchKeySet({DispatchKey::SparseCUDA})));

}  // namespace

bool is_plain(const at::Tensor& tensor) {
  if (!is_ordinary(tensor.key_set())) return false;
  const bool has_memory = tensor.has_storage() && tensor.storage().data() != nullptr;
  return has_memory || tensor.numel() == 0 || tensor.is_meta();
}

at::Tensor plain(const at::Tensor& tensor, const char* function, const char* name) {
  if (is_plain(tensor)) return tensor;
  const at::Tensor made = at::resolve_neg(at::resolve_conj(tensor));
  TORCH_CHECK(is_plain(made), function, ": ", name, " must be an ordinary strided tensor, got ",
              tensor.key_set());
  return made;
}

}  // namespace fastrnn
