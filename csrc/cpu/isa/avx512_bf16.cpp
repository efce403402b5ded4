// AVX512 with the bfloat16 dot product.
#include "levels.h"

#if FASTRNN_X86_LEVELS
#include "avx512_bf16.h"

#include "../layer.h"

fastrnn::cpu::Kernels fastrnn::cpu::avx512_bf16_kernels() { return avx512_bf16::make_kernels(); }
#endif
