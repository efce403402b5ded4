// AVX512 (F, BW, VL, DQ).
#include "levels.h"

#if FASTRNN_X86_LEVELS
#include "avx512.h"

#include "../layer.h"

fastrnn::cpu::Kernels fastrnn::cpu::avx512_kernels() { return avx512::make_kernels(); }
#endif
