// AVX512 with the bfloat16 dot product, and AMX by the assembler (tile_registers.h).
// The level, for all that a file includes after this.
#pragma once

#pragma GCC target("prfchw")
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#define FASTRNN_ISA amx_bf16
#define FASTRNN_LEVEL 4
