#include "sorted_rows.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <numeric>

#include "gate.h"

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

std::vector<int64_t> equal_offsets(int64_t T, int64_t B) {
  std::vector<int64_t> offsets(size_t(T + 1));
  for (int64_t t = 0; t <= T; ++t) offsets[size_t(t)] = t * B;
  return offsets;
}

std::vector<int64_t> step_offsets(const char* function, const at::Tensor& given, int64_t rows) {
  const at::Tensor sizes = plain(given, function, "batch_sizes");
  TORCH_CHECK(sizes.dim() == 1 && sizes.scalar_type() == at::kLong && sizes.device().is_cpu(),
              function, ": batch_sizes must be an int64 CPU tensor of shape (T,), got ",
              sizes.scalar_type(), " of shape ", sizes.sizes(), " on ", sizes.device());
  const at::Tensor contiguous = sizes.contiguous();
  const int64_t* size = contiguous.const_data_ptr<int64_t>();
  std::vector<int64_t> offsets{0};
  for (int64_t t = 0; t < contiguous.numel(); ++t) {
    TORCH_CHECK(size[t] > 0 && (t == 0 || size[t] <= size[t - 1]), function,
                ": batch_sizes must be positive and must not increase, got ", size[t], " at index ",
                t, t == 0 ? "" : " after " + std::to_string(size[t - 1]));
    TORCH_CHECK(size[t] <= rows - offsets.back(), function,
                ": batch_sizes hold more rows than the ", rows, " of the input");
    offsets.push_back(offsets.back() + size[t]);
  }
  TORCH_CHECK(offsets.back() == rows, function, ": batch_sizes hold ", offsets.back(),
              " rows, the input ", rows);
  return offsets;
}

}  // namespace fastrnn
