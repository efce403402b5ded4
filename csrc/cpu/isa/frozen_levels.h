// The kernels of frozen stacks of each instruction set, and those in use. Only plain_frozen() may
// be called before the CPU is known to run the level.
#pragma once

#include "../frozen.h"
#include "levels.h"

namespace fastrnn::cpu {

FrozenKernels plain_frozen(FrozenType type);
FrozenKernels avx2_frozen(FrozenType type);
FrozenKernels avx2_vnni_frozen();  // of kInt8, with the dot product of bytes
FrozenKernels avx512_frozen(FrozenType type);
FrozenKernels avx512_vnni_frozen();         // likewise
FrozenKernels avx512_bf16_frozen();         // of kBfloat16, with the dot product of bfloat16
FrozenKernels amx_frozen(FrozenType type);  // of kBfloat16 and kInt8, with products of tiles

// Of the instruction set in use (dispatch.h).
FrozenKernels frozen_kernels(FrozenType type);

}  // namespace fastrnn::cpu
