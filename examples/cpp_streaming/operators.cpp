// torch.ops.fastrnn.frozen for a program without Python: where Python runs, the package registers
// it. Frozen layers are all that this library serves.
#include <torch/library.h>

#include "../../csrc/bindings/frozen.h"
#include "../../csrc/cpu/isa/levels.h"

namespace {

std::vector<at::Tensor> frozen(const at::Tensor& packed, const at::Tensor& x,
                               const std::vector<at::Tensor>& hx,
                               const std::optional<at::Tensor>& lengths, bool batch_first,
                               int64_t /* directions, which `packed` says, too */) {
  auto [output, states] =
      fastrnn::frozen_forward(packed, x, hx, lengths, std::nullopt, batch_first);
  states.insert(states.begin(), output);
  return states;
}

}  // namespace

TORCH_LIBRARY(fastrnn, m) {
  m.def(
      "frozen(Tensor packed, Tensor x, Tensor[] hx, Tensor? lengths, bool batch_first, "
      "int directions) -> Tensor[]");
  m.impl("frozen", c10::DispatchKey::CPU, TORCH_FN(frozen));
}

// The instruction sets come with kernels for layers that are not frozen. Those take minutes to
// compile and nothing here calls them.
namespace fastrnn::cpu {
Kernels plain_kernels() { return {}; }
Kernels avx2_kernels() { return {}; }
Kernels avx512_kernels() { return {}; }
Kernels avx512_bf16_kernels() { return {}; }
Kernels amx_bf16_kernels() { return {}; }
}  // namespace fastrnn::cpu
