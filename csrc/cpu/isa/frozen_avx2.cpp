// AVX2: kernels of frozen stacks.
#include "frozen_levels.h"

#if FASTRNN_X86_LEVELS
#pragma GCC target("avx2,fma,f16c")
#define FASTRNN_ISA avx2
#define FASTRNN_LEVEL 1
namespace fastrnn::cpu::FASTRNN_ISA {
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
constexpr double kProductsPerCycle = 2;
}  // namespace fastrnn::cpu::FASTRNN_ISA

#include "../frozen_kernels.h"

namespace fastrnn::cpu {
FrozenKernels avx2_frozen() { return avx2::frozen_kernels_of<false>(); }
}  // namespace fastrnn::cpu
#endif
