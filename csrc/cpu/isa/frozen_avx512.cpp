// AVX512, with and without the dot product of bytes: kernels of frozen stacks.
#include "frozen_levels.h"

#if FASTRNN_X86_LEVELS
#include "avx512.h"

#include "../frozen_kernels.h"

namespace fastrnn::cpu {
FrozenKernels avx512_frozen(bool vnni) {
  return vnni ? avx512::frozen_kernels_of<true>() : avx512::frozen_kernels_of<false>();
}
}  // namespace fastrnn::cpu
#endif
