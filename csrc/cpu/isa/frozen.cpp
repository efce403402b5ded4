#include <atomic>

#include "../dispatch.h"
#include "frozen_levels.h"

namespace fastrnn::cpu {
namespace {

std::atomic<DotProducts> setting{DotProducts::kWhereFaster};

[[maybe_unused]] bool uses(bool supported, bool faster = true) {
  const DotProducts now = setting;
  return supported && (now == DotProducts::kAlways || (now == DotProducts::kWhereFaster && faster));
}

}  // namespace

void use_dot_products(DotProducts where) { setting = where; }

FrozenKernels frozen_kernels([[maybe_unused]] FrozenType type) {
#if FASTRNN_X86_LEVELS
  const std::string level = isa();
  const bool int8 = type == FrozenType::kInt8;
  if (level == "avx2") {
    const bool bytes = int8 && uses(__builtin_cpu_supports("avxvnni"));
    return bytes ? avx2_vnni_frozen() : avx2_frozen(type);
  }
  const bool tiles = level == "amx_bf16", bf16 = tiles || level == "avx512_bf16";
  if (bf16 || level == "avx512") {
    if (tiles && type != FrozenType::kFloat32 && uses(true)) return amx_frozen(type);
    if (int8 && uses(__builtin_cpu_supports("avx512vnni"))) return avx512_vnni_frozen();
    // Intel's dot product of bfloat16 multiplies at half the rate of its float32 FMA: widened
    // weights are slower there at no shape (benchmarks/NOTES.md, 2026-11-27).
    const bool pairs = bf16 && uses(true, !__builtin_cpu_is("intel"));
    if (type == FrozenType::kBfloat16 && pairs) return avx512_bf16_frozen();
    return avx512_frozen(type);
  }
#endif
  return plain_frozen(type);
}

}  // namespace fastrnn::cpu
