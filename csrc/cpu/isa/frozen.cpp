#include "../dispatch.h"
#include "frozen_levels.h"

namespace fastrnn::cpu {
namespace {

struct Level {
  std::string isa;
  FrozenKernels kernels;
};

FrozenKernels kernels_of(const std::string& isa, [[maybe_unused]] bool highest) {
#if FASTRNN_X86_LEVELS
  if (isa == "avx2") return avx2_frozen();
  if (isa == "avx512") return avx512_frozen(highest && __builtin_cpu_supports("avx512vnni"));
  // With tiles a step of few rows would be no faster, and there is nothing to measure it on.
  if (isa == "avx512_bf16" || isa == "amx_bf16") return avx512_bf16_frozen();
#endif
  return plain_frozen();
}

}  // namespace

const FrozenKernels& frozen_kernels() {
  static const std::vector<Level> levels = [] {
    std::vector<Level> found;
    const std::vector<std::string> names = supported_isas();
    for (const std::string& name : names)
      found.push_back({name, kernels_of(name, name == names.back())});
    return found;
  }();
  const std::string now = isa();
  for (const Level& level : levels) {
    if (level.isa == now) return level.kernels;
  }
  return levels.front().kernels;
}

}  // namespace fastrnn::cpu
