// AVX512, with and without the dot product of bytes: kernels of frozen stacks.
#include "frozen_levels.h"

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

#include "../frozen_kernels.h"

namespace fastrnn::cpu {
FrozenKernels avx512_frozen(bool vnni) {
  return vnni ? avx512::frozen_kernels_of<true>() : avx512::frozen_kernels_of<false>();
}
}  // namespace fastrnn::cpu
#endif
