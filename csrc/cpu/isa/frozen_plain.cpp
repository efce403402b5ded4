// Any CPU: kernels of frozen stacks.
#include "frozen_levels.h"

#define FASTRNN_ISA plain
#define FASTRNN_LEVEL 0
namespace fastrnn::cpu::FASTRNN_ISA {
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
constexpr double kProductsPerCycle = 1;
}  // namespace fastrnn::cpu::FASTRNN_ISA

#include "../frozen_kernels.h"

namespace fastrnn::cpu {
FrozenKernels plain_frozen() { return plain::frozen_kernels_of<false>(); }
}  // namespace fastrnn::cpu
