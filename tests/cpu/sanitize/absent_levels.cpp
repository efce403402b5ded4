// Stands for the instruction sets that a build leaves out; never called. Where a build has a level,
// the linker takes its definition.
#include "../../../csrc/cpu/isa/frozen_levels.h"

namespace fastrnn::cpu {
[[gnu::weak]] Kernels plain_kernels() { return {}; }
[[gnu::weak]] Kernels avx2_kernels() { return {}; }
[[gnu::weak]] Kernels avx512_kernels() { return {}; }
[[gnu::weak]] Kernels avx512_bf16_kernels() { return {}; }
[[gnu::weak]] Kernels amx_bf16_kernels() { return {}; }
[[gnu::weak]] FrozenKernels avx2_frozen(FrozenType) { return {}; }
[[gnu::weak]] FrozenKernels avx2_vnni_frozen() { return {}; }
[[gnu::weak]] FrozenKernels avx512_frozen(FrozenType) { return {}; }
[[gnu::weak]] FrozenKernels avx512_vnni_frozen() { return {}; }
[[gnu::weak]] FrozenKernels avx512_bf16_frozen() { return {}; }
[[gnu::weak]] FrozenKernels amx_frozen(FrozenType) { return {}; }
}  // namespace fastrnn::cpu
