// AVX2: kernels of frozen stacks.
#include "frozen_levels.h"

#if FASTRNN_X86_LEVELS
#include "avx2.h"

#include "../frozen_kernels.h"

namespace fastrnn::cpu {
FrozenKernels avx2_frozen(FrozenType type) { return avx2::frozen_kernels_of(type); }
}  // namespace fastrnn::cpu
#endif
