// AVX2 with FMA and half-precision conversion.
#include "levels.h"

#if FASTRNN_X86_LEVELS
#include "avx2.h"

#include "../layer.h"

namespace fastrnn::cpu {
Kernels avx2_kernels() { return avx2::make_kernels(); }
}  // namespace fastrnn::cpu
#endif
