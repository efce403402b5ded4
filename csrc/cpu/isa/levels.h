// The kernels of each instruction set, each compiled in a file of its own. Only plain_kernels() may
// be called before the CPU is known to run the level.
#pragma once

#include "../params.h"

// The x86 levels are chosen per file by GCC's target pragma.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FASTRNN_X86_LEVELS 1
#else
#define FASTRNN_X86_LEVELS 0
#endif

namespace fastrnn::cpu {

Kernels plain_kernels();
Kernels avx2_kernels();
Kernels avx512_kernels();
Kernels avx512_bf16_kernels();
Kernels amx_bf16_kernels();

}  // namespace fastrnn::cpu
