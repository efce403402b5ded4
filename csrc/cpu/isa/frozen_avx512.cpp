// AVX512: kernels of frozen stacks.
#include "frozen_levels.h"

#if FASTRNN_X86_LEVELS
#include "avx512.h"

#include "../frozen_kernels.h"

fastrnn::cpu::FrozenKernels fastrnn::cpu::avx512_frozen(FrozenType type) {
  return avx512::frozen_kernels_of(type);
}
#endif
