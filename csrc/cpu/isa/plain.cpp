// Any CPU: 128-bit vectors, which the compiler maps to SSE2 or NEON.
#include "levels.h"

#define FASTRNN_ISA plain
#define FASTRNN_LEVEL 0
namespace fastrnn::cpu::FASTRNN_ISA {
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
constexpr double kProductsPerCycle = 1;
}  // namespace fastrnn::cpu::FASTRNN_ISA

#include "../layer.h"

namespace fastrnn::cpu {
Kernels plain_kernels() { return plain::make_kernels(); }
}  // namespace fastrnn::cpu
