#include "../dispatch.h"
#include "frozen_levels.h"

namespace fastrnn::cpu {

FrozenKernels frozen_kernels([[maybe_unused]] FrozenType type) {
#if FASTRNN_X86_LEVELS
  const std::string level = isa();
  const bool int8 = type == FrozenType::kInt8;
  if (level == "avx2") {
    const bool bytes = int8 && uses_dot_products() && __builtin_cpu_supports("avxvnni");
    return bytes ? avx2_vnni_frozen() : avx2_frozen(type);
  }
  if (level.rfind("avx512", 0) == 0 || level == "amx_bf16") {
    const bool bf16 = type == FrozenType::kBfloat16 && level != "avx512";
    if (level == "amx_bf16" && (bf16 || int8) && uses_dot_products()) return amx_frozen(type);
    if (int8 && uses_dot_products() && __builtin_cpu_supports("avx512vnni"))
      return avx512_vnni_frozen();
    if (bf16 && uses_dot_products(multiplies_pairs_fast())) return avx512_bf16_frozen();
    return avx512_frozen(type);
  }
#endif
  return plain_frozen(type);
}

}  // namespace fastrnn::cpu
