// AVX512 (F, BW, VL, DQ).
#include "levels.h"

#if FASTRNN_X86_LEVELS
#include "avx512.h"

#include "../layer.h"

namespace fastrnn::cpu {
Kernels avx512_kernels() { return avx512::make_kernels(); }
}  // namespace fastrnn::cpu
#endif
