#include "sorted_rows.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <numeric>

namespace fastrnn {

SortedRows sort_rows(const char* function, const int64_t* lengths, int64_t B, int64_t T) {
  for (int64_t b = 0; b < B; ++b) {
    TORCH_CHECK_VALUE(lengths[b] >= 0 && lengths[b] <= T, function,
                      ": lengths must be within 0 .. T = ", T, ", got ", lengths[b], " at index ",
                      b);
  }
  SortedRows sorted{std::vector<int64_t>(B), {0}};
  std::vector<int64_t>& order = sorted.order;
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
  const int64_t steps = std::max<int64_t>(B > 0 ? lengths[order[0]] : 0, 1);
  for (int64_t t = 0, alive = B; t < steps; ++t) {
    while (alive > 0 && lengths[order[alive - 1]] <= t) --alive;
    sorted.offsets.push_back(sorted.offsets.back() + alive);
  }
  return sorted;
}

}  // namespace fastrnn
