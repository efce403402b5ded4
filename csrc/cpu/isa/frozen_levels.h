// The kernels of frozen stacks of each instruction set, and those in use. Only plain_frozen() may
// be called before the CPU is known to run the level.
#pragma once

#include "../frozen.h"
#include "levels.h"

namespace fastrnn::cpu {

FrozenKernels plain_frozen();
FrozenKernels avx2_frozen();
FrozenKernels avx512_frozen(bool vnni);  // vnni: the CPU has the dot product of bytes
FrozenKernels avx512_bf16_frozen();

// Of the instruction set in use (dispatch.h). Every CPU with bfloat16 products has those of bytes,
// too; avx512 uses them only where it is the machine's highest level.
const FrozenKernels& frozen_kernels();

}  // namespace fastrnn::cpu
