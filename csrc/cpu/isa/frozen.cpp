#include "../dispatch.h"
#include "frozen_levels.h"

namespace fastrnn::cpu {
namespace {

FrozenKernels kernels_of(const std::string& isa, FrozenType type, [[maybe_unused]] bool highest) {
#if FASTRNN_X86_LEVELS
  if (isa == "avx2") {
    const bool bytes = __builtin_cpu_supports("avxvnni");
    return type == FrozenType::kInt8 && bytes ? avx2_vnni_frozen() : avx2_frozen(type);
  }
  const bool dot = isa == "avx512_bf16" || isa == "amx_bf16";
  if (dot || isa == "avx512") {
    // Every CPU with the dot product of bfloat16 has that of bytes, too.
    const bool bytes = dot || (highest && __builtin_cpu_supports("avx512vnni"));
    if (type == FrozenType::kInt8 && bytes) return avx512_vnni_frozen();
    // Intel's dot product of bfloat16 multiplies at half the rate of its float32 FMA: widened
    // weights are slower there at no shape (benchmarks/NOTES.md, 2026-11-27). With tiles a step of
    // few rows would be no faster, and there is nothing to measure them on.
    const bool pays = !(highest && __builtin_cpu_is("intel"));
    if (type == FrozenType::kBfloat16 && dot && pays) return avx512_bf16_frozen();
    return avx512_frozen(type);
  }
#endif
  return plain_frozen(type);
}

}  // namespace

const FrozenKernels& frozen_kernels(FrozenType type) {
  struct Level {
    std::string isa;
    std::vector<FrozenKernels> of_type;
  };
  static const std::vector<Level> levels = [] {
    std::vector<Level> found;
    const std::vector<std::string> names = supported_isas();
    for (const std::string& name : names) {
      found.push_back({name, {}});
      for (FrozenType each : {FrozenType::kFloat32, FrozenType::kBfloat16, FrozenType::kInt8})
        found.back().of_type.push_back(kernels_of(name, each, name == names.back()));
    }
    return found;
  }();
  const std::string now = isa();
  for (const Level& level : levels) {
    if (level.isa == now) return level.of_type[size_t(type)];
  }
  return levels.front().of_type[size_t(type)];
}

}  // namespace fastrnn::cpu
