// AVX2: kernels of frozen stacks.
#include "frozen_levels.h"

#if FASTRNN_X86_LEVELS
#include "avx2.h"

#include "../frozen_kernels.h"

fastrnn::cpu::FrozenKernels fastrnn::cpu::avx2_frozen(FrozenType type) {
  return avx2::frozen_kernels_of(type);
}
#endif
