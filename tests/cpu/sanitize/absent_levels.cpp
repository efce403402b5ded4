// Stands for the instruction sets that a build leaves out to save time; never called.
#include "../../../csrc/cpu/isa/levels.h"

namespace fastrnn::cpu {
Kernels avx2_kernels() { return {}; }
Kernels avx512_bf16_kernels() { return {}; }
}  // namespace fastrnn::cpu
