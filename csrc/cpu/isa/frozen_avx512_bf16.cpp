// AVX512 with the dot products of bfloat16 and of bytes: kernels of frozen stacks.
#include "frozen_levels.h"

#if FASTRNN_X86_LEVELS
#include "avx512_bf16.h"

#include "../frozen_kernels.h"

namespace fastrnn::cpu {
FrozenKernels avx512_bf16_frozen() { return avx512_bf16::frozen_kernels_of<true>(); }
}  // namespace fastrnn::cpu
#endif
