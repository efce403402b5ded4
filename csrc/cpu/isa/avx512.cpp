// AVX512 (F, BW, VL, DQ).
#include "levels.h"

#if FASTRNN_X86_LEVELS
#pragma GCC target("prfchw")
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#define FASTRNN_ISA avx512
#define FASTRNN_LEVEL 2
namespace fastrnn::cpu::FASTRNN_ISA {
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
constexpr double kProductsPerCycle = 2;
}  // namespace fastrnn::cpu::FASTRNN_ISA

#include "../layer.h"

namespace fastrnn::cpu {
Kernels avx512_kernels() { return avx512::make_kernels(); }
}  // namespace fastrnn::cpu
#endif
