// AVX512 with the bfloat16 dot product, and bfloat16 products on the matrix unit.
#include "levels.h"

#if FASTRNN_X86_LEVELS
#include "amx_bf16.h"

#include "../layer.h"

fastrnn::cpu::Kernels fastrnn::cpu::amx_bf16_kernels() { return amx_bf16::make_kernels(); }
#endif
