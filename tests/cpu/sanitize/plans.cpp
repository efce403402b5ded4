// Asks plan.cpp for the division of a single row's units, for many sizes and numbers of threads,
// and prints a line for each thread that brings nothing: one without which the largest share of the
// units would be no larger. tests/cpu/test_derivation.py builds and runs it.
#include <algorithm>
#include <cstdio>
#include <vector>

#include "../../../csrc/cpu/plan.h"

namespace cpu = fastrnn::cpu;

// Vectors of units in the largest of so many slices, as the kernels cut them.
int64_t largest_share(int64_t vectors, int64_t widest, int64_t slices) {
  const int64_t width = cpu::block_vectors(vectors, widest, slices);
  const int64_t blocks = (vectors + width - 1) / width;
  int64_t largest = 0;
  for (int64_t i = 0; i < slices; ++i) {
    const int64_t begin = blocks * i / slices * width, end = blocks * (i + 1) / slices * width;
    largest = std::max(largest, std::min(end, vectors) - std::min(begin, vectors));
  }
  return largest;
}

int main() {
  constexpr int64_t kSteps = 100;
  std::vector<int64_t> offsets(kSteps + 1);
  for (int64_t t = 0; t <= kSteps; ++t) offsets[t] = t;
  int divided = 0, failures = 0;
  for (int64_t vectors = 1; vectors <= 64; ++vectors) {
    for (const int64_t widest : {1, 4}) {
      for (int threads = 1; threads <= 12; ++threads) {
        cpu::LayerShape shape{};
        shape.T = kSteps;
        shape.B = shape.D = 1;
        shape.offsets = offsets.data();
        shape.threads = threads;
        const double weights = 4.0 * 16 * 16 * double(vectors * vectors);
        const cpu::StepWork work{weights, 32, 1, 4 * weights, vectors, widest, vectors};
        const cpu::Plan plan = cpu::make_plan(shape, work, threads);
        divided += plan.unit_slices > 1;
        bool right = plan.threads <= threads && plan.threads == plan.unit_slices;
        if (plan.unit_slices > 1) {
          right = right && largest_share(vectors, widest, plan.unit_slices) <
                               largest_share(vectors, widest, plan.unit_slices - 1);
        }
        if (right) continue;
        ++failures;
        std::printf("FAILED %d vectors in blocks of %d, %d threads: %d slices\n", int(vectors),
                    int(widest), threads, plan.unit_slices);
      }
    }
  }
  std::printf("%d divided, %d failures\n", divided, failures);
  return divided == 0 || failures > 0;
}
