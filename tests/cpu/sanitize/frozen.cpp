// Runs the kernels of frozen stacks on random shapes and threads, for a sanitizer: frozen [isa]
// [runs] [bytes]. Every array has its exact size and the workspace, short of `bytes`, begins as
// NaN; a result that is NaN shows that something was read before it was written.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "../../../csrc/cpu/isa/frozen_levels.h"
#include "forced_plan.h"

namespace {
std::string level;
}

// In place of dispatch.cpp, which would bring the other kernels.
namespace fastrnn::cpu {
std::vector<std::string> supported_isas() { return {level}; }
std::string isa() { return level; }
}  // namespace fastrnn::cpu

namespace {

using namespace fastrnn::cpu;

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Memory = std::unique_ptr<char, Free>;

// On a cache line, as all that the kernels get; the end is that of the allocation.
Memory allocate(size_t bytes) {
  void* p = nullptr;
  if (posix_memalign(&p, 64, std::max<size_t>(bytes, 1)) != 0) std::abort();
  return Memory((char*)p);
}

class Random {
 public:
  int64_t below(int64_t end) { return int64_t(generator() % uint64_t(end)); }
  int64_t among(const std::vector<int64_t>& values) {
    return values[size_t(below(int64_t(values.size())))];
  }

 private:
  std::mt19937_64 generator{7};
};

FrozenShape draw_shape(Random& random) {
  FrozenShape s{};
  s.type = FrozenType(random.below(3));
  s.cell = int(random.below(s.type == FrozenType::kInt8 ? 2 : 4));
  s.layers = 1 + int(random.below(3));
  s.D = 1 + int(random.below(2));
  s.I = random.among({1, 2, 3, 5, 16, 17, 33, 50});
  s.H = random.among({1, 2, 5, 15, 16, 17, 31, 48, 70});
  s.R = s.H > 1 && random.below(2) == 1 ? 1 + random.below(s.H - 1) : s.H;
  if (!frozen_serves(s)) s.R = s.H;
  return s;
}

Memory draw_weights(const FrozenShape& s, Random& random) {
  Memory packed = allocate(frozen_bytes(s));
  write_header(s, packed.get());
  for (int i = 0; i < s.layers * s.D; ++i) {
    const FrozenDirection d = frozen_direction(s, i / s.D, i % s.D);
    for (const FrozenMatrix* m : {&d.w_ih, &d.w_hh, &d.w_hr}) {
      if (m->units == 0) continue;
      const size_t rows = size_t(m->gates * m->units), count = rows * size_t(m->inputs);
      const std::vector<char> zeros(count * 4);
      const std::vector<float> bias(rows, 0.1f), scales(rows, 0.01f);
      pack_frozen(s.type, *m,
                  {zeros.data(), random.below(2) ? bias.data() : nullptr, scales.data()},
                  packed.get());
    }
  }
  return packed;
}

// Returns whether everything was written.
bool run(Random& random, size_t missing) {
  const FrozenShape s = draw_shape(random);
  const Memory packed = draw_weights(s, random);
  const int64_t T = 1 + random.below(7), batch = random.among({1, 2, 3, 7, 13});
  std::vector<int64_t> lengths(batch, T), order(lengths), offsets(1, 0);
  const bool ragged = random.below(2) == 1;
  for (int64_t b = 1; ragged && b < batch; ++b) lengths[size_t(b)] = random.below(T + 1);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return lengths[size_t(a)] > lengths[size_t(b)]; });
  for (int64_t t = 0; t < T; ++t) {
    const auto alive = std::count_if(lengths.begin(), lengths.end(), [&](auto n) { return n > t; });
    offsets.push_back(offsets.back() + alive);
  }
  const int64_t width = s.D * s.R, rows = s.layers * s.D * batch;
  const Memory x = allocate(size_t(T * batch * s.I) * 4);
  const Memory output = allocate(size_t(T * batch * width) * 4);
  const Memory h = allocate(size_t(rows * s.R) * 4), c = allocate(size_t(rows * s.H) * 4);
  std::memset(x.get(), 0, size_t(T * batch * s.I) * 4);
  std::memset(h.get(), 0, size_t(rows * s.R) * 4);
  std::memset(c.get(), 0, size_t(rows * s.H) * 4);

  FrozenCall call{};
  call.shape = s;
  call.packed = packed.get();
  const bool dense = !ragged && random.below(2) == 1, batch_first = random.below(2) == 1;
  const auto strides = [&](auto* data, int64_t values) {
    using Value = std::remove_reference_t<decltype(*data)>;
    if (dense) return FrozenRows<Value>{data, 0, values, true};
    if (batch_first) return FrozenRows<Value>{data, values, T * values, false};
    return FrozenRows<Value>{data, batch * values, values, false};
  };
  call.x = strides((const float*)x.get(), s.I);
  call.output = strides((float*)output.get(), width);
  call.states[0] = (float*)h.get();
  call.states[1] = (float*)c.get();
  call.T = T;
  call.B = offsets[1];
  call.batch = batch;
  call.offsets = offsets.data();
  call.order = ragged ? order.data() : nullptr;
  call.threads = 4;
  forced = {1 + int(random.below(2)), 1 + int(random.below(2)), 1 + int(random.below(2))};
  const FrozenKernels kernels = frozen_kernels(s.type);
  const size_t bytes = kernels.workspace(call);
  const Memory workspace = allocate(bytes - std::min(bytes, missing));
  std::memset(workspace.get(), 0xff, bytes - std::min(bytes, missing));
  call.workspace = workspace.get();
  kernels.run(call);
  const float* const last = (const float*)h.get();
  return std::none_of(last, last + rows * s.R, [](float value) { return value != value; });
}

}  // namespace

int main(int count, char** arguments) {
  level = count > 1 ? arguments[1] : "plain";
  const int runs = count > 2 ? std::atoi(arguments[2]) : 300;
  const size_t missing = count > 3 ? size_t(std::atoi(arguments[3])) : 0;
  Random random;
  int failures = 0;
  for (int i = 0; i < runs; ++i) {
    use_dot_products(i % 2 ? DotProducts::kAlways : DotProducts::kNever);
    failures += !run(random, missing);
  }
  std::printf("%d runs, %d failures\n", runs, failures);
  if (forced_uses == 0) std::printf("no work was divided\n");
  return failures > 0 || forced_uses == 0;
}
