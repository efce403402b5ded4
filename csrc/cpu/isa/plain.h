// Any CPU: 128-bit vectors, which the compiler maps to SSE2 or NEON.
// The level, for all that a file includes after this.
#pragma once

#define FASTRNN_ISA plain
#define FASTRNN_LEVEL 0
namespace fastrnn::cpu::FASTRNN_ISA {
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
constexpr double kProductsPerCycle = 1;
}  // namespace fastrnn::cpu::FASTRNN_ISA
