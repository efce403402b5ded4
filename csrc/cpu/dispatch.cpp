#include "dispatch.h"

#include <atomic>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "isa/levels.h"

namespace fastrnn::cpu {
namespace {

struct Level {
  const char* name;
  Kernels bfloat16, others;
};

// Whether the CPU has tiles of bfloat16 and of bytes, and Linux lets this process use them: their
// registers are so large that a process has to ask.
[[maybe_unused]] bool may_use_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr unsigned kTileBits = 1u << 22 | 1u << 24 | 1u << 25;  // amx-bf16, -tile, -int8
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTileBits) != kTileBits) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

const std::vector<Level>& levels() {
  static const std::vector<Level> all = [] {
    std::vector<Level> found;
    const auto add = [&](const char* name, const Kernels& all) {
      found.push_back({name, all, all});
    };
    [[maybe_unused]] const auto add_bfloat16 = [&](const char* name, const Kernels& bfloat16) {
      found.push_back({name, bfloat16, found.back().others});
    };
    add("plain", plain_kernels());
#if FASTRNN_X86_LEVELS
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq");
    const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    if (avx2) add("avx2", avx2_kernels());
    if (avx512) add("avx512", avx512_kernels());
    if (bf16) add_bfloat16("avx512_bf16", avx512_bf16_kernels());
    if (bf16 && may_use_tiles()) add_bfloat16("amx_bf16", amx_bf16_kernels());
#endif
    return found;
  }();
  return all;
}

std::atomic<size_t>& current() {
  static std::atomic<size_t> index{levels().size() - 1};
  return index;
}

std::atomic<DotProducts> dot_products{DotProducts::kWhereFaster};

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

void use_dot_products(DotProducts where) { dot_products = where; }

bool uses_dot_products(bool faster) {
  const DotProducts now = dot_products;
  return now == DotProducts::kAlways || (now == DotProducts::kWhereFaster && faster);
}

bool multiplies_pairs_fast() {
#if FASTRNN_X86_LEVELS
  return isa() == "amx_bf16" || (isa() == "avx512_bf16" && !__builtin_cpu_is("intel"));
#else
  return false;
#endif
}

bool pairs_bfloat16(int64_t rows) {
  constexpr int64_t kFewRows = 8;  // which wait for weights
  return uses_dot_products(multiplies_pairs_fast() || rows < kFewRows);
}

bool multiplies_bfloat16(int64_t rows) { return isa().ends_with("_bf16") && pairs_bfloat16(rows); }

const Kernels& kernels(Dtype dtype, int64_t rows) {
  const Level& level = levels()[current()];
  return dtype == Dtype::kBfloat16 && pairs_bfloat16(rows) ? level.bfloat16 : level.others;
}

ProductKernel product_kernel(Dtype dtype, int64_t results, int64_t depth) {
  const Level& level = levels()[current()];
  if (dtype == Dtype::kBfloat16) {
    // Without tiles, short sums take longer than oneDNN's unless its overhead shows
    // (benchmarks/NOTES.md, 2026-11-22 and 2026-11-25).
    constexpr int64_t kFewResults = 1 << 17, kLong = 512, kShort = 8;
    const bool pays = depth >= (results <= kFewResults ? kShort : kLong) || isa() == "amx_bf16";
    return pays ? level.bfloat16.product_bfloat16 : nullptr;
  }
#if FASTRNN_X86_LEVELS
  // torch's BLAS is MKL, which is fast in float32 on Intel's CPUs alone, and elsewhere where no sum
  // is longer than one product.
  const bool pays = depth > 1 && !__builtin_cpu_is("intel");
  if (dtype == Dtype::kFloat32 && pays) return level.others.product_float32;
#endif
  return nullptr;
}

}  // namespace fastrnn::cpu
