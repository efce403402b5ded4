// AVX2 with FMA and half-precision conversion.
#include "levels.h"

#if FASTRNN_X86_LEVELS
#pragma GCC target("avx2,fma,f16c")
#define FASTRNN_ISA avx2
#define FASTRNN_LEVEL 1
namespace fastrnn::cpu::FASTRNN_ISA {
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
constexpr double kProductsPerCycle = 2;
}  // namespace fastrnn::cpu::FASTRNN_ISA

#include "../layer.h"

namespace fastrnn::cpu {
Kernels avx2_kernels() { return avx2::make_kernels(); }
}  // namespace fastrnn::cpu
#endif
