#include "dispatch.h"

#include <atomic>

#include "isa/levels.h"

namespace fastrnn::cpu {
namespace {

struct Level {
  const char* name;
  Kernels kernels;
};

const std::vector<Level>& levels() {
  static const std::vector<Level> all = [] {
    std::vector<Level> found{{"plain", plain_kernels()}};
#if FASTRNN_X86_LEVELS
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq");
    const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    if (avx2) found.push_back({"avx2", avx2_kernels()});
    if (avx512) found.push_back({"avx512", avx512_kernels()});
    if (bf16) found.push_back({"avx512_bf16", avx512_bf16_kernels()});
#endif
    return found;
  }();
  return all;
}

std::atomic<size_t>& current() {
  static std::atomic<size_t> index{levels().size() - 1};
  return index;
}

}  // namespace

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Level& level : levels()) names.push_back(level.name);
  return names;
}

std::string isa() { return levels()[current()].name; }

bool set_isa(const std::string& name) {
  for (size_t i = 0; i < levels().size(); ++i) {
    if (levels()[i].name != name) continue;
    current() = i;
    return true;
  }
  return false;
}

const Kernels& kernels() { return levels()[current()].kernels; }

}  // namespace fastrnn::cpu
