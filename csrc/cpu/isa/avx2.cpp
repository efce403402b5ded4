// AVX2 with FMA and half-precision conversion.
#include "levels.h"

#if FASTRNN_X86_LEVELS
#include "avx2.h"

#include "../layer.h"

fastrnn::cpu::Kernels fastrnn::cpu::avx2_kernels() { return avx2::make_kernels(); }
#endif
