// AVX512 with the dot product of bfloat16: kernels of frozen stacks with such weights.
#include "frozen_levels.h"

#if FASTRNN_X86_LEVELS
#include "avx512_bf16.h"

#include "../frozen_kernels.h"

fastrnn::cpu::FrozenKernels fastrnn::cpu::avx512_bf16_frozen() {
  return avx512_bf16::frozen_kernels_with<avx512_bf16::FrozenDot>();
}
#endif
