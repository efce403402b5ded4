// AVX512 with the dot product of bytes: kernels of frozen stacks in int8.
#include "frozen_levels.h"

#if FASTRNN_X86_LEVELS
#pragma GCC target("avx512vnni")
#define FASTRNN_VNNI
#define FASTRNN_ISA avx512_vnni
#include "avx512.h"

#include "../frozen_kernels.h"

fastrnn::cpu::FrozenKernels fastrnn::cpu::avx512_vnni_frozen() {
  return avx512_vnni::frozen_kernels_with<avx512_vnni::FrozenInt8>();
}
#endif
