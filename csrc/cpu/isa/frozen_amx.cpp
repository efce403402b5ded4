// AMX: kernels of frozen stacks with bfloat16 and int8 weights; single rows by the dot products.
#include "frozen_levels.h"

#if FASTRNN_X86_LEVELS
#pragma GCC target("avx512vnni")
#define FASTRNN_VNNI
#include "amx_bf16.h"

#include "../frozen_kernels.h"

fastrnn::cpu::FrozenKernels fastrnn::cpu::amx_frozen(FrozenType type) {
  return type == FrozenType::kInt8 ? amx_bf16::frozen_kernels_with<amx_bf16::FrozenInt8>()
                                   : amx_bf16::frozen_kernels_with<amx_bf16::FrozenDot>();
}
#endif
