// AVX512 with the bfloat16 dot product, and bfloat16 products on the matrix unit.
#include "levels.h"

#if FASTRNN_X86_LEVELS
#pragma GCC target("prfchw")
#pragma GCC target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#define FASTRNN_ISA amx_bf16
#define FASTRNN_LEVEL 4

#include "../layer.h"

namespace fastrnn::cpu {
Kernels amx_bf16_kernels() { return amx_bf16::make_kernels(); }
}  // namespace fastrnn::cpu
#endif
