// AVX2 with the dot product of bytes: kernels of frozen stacks in int8.
#include "frozen_levels.h"

#if FASTRNN_X86_LEVELS
#pragma GCC target("avxvnni")
#define FASTRNN_VNNI
#define FASTRNN_ISA avx2_vnni
#include "avx2.h"

#include "../frozen_kernels.h"

fastrnn::cpu::FrozenKernels fastrnn::cpu::avx2_vnni_frozen() {
  return avx2_vnni::frozen_kernels_with<avx2_vnni::FrozenInt8>();
}
#endif
