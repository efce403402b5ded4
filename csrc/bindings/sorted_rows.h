// The rows of each step, whose number never grows: of packed sequences, and of batch rows that
// differ in length, which are sorted for that.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace fastrnn {

struct SortedRows {
  std::vector<int64_t> order;    // batch rows, longest first
  std::vector<int64_t> offsets;  // the first row of each step; at least one step
};
// Of B lengths. Raises ValueError unless they are within 0 .. T.
SortedRows sort_rows(const char* function, const int64_t* lengths, int64_t B, int64_t T);

// The first row of each step and the end of the last: where all B rows have T steps; and from a
// PackedSequence's batch_sizes, which are checked against the `rows` of its data.
std::vector<int64_t> equal_offsets(int64_t T, int64_t B);
std::vector<int64_t> step_offsets(const char* function, const at::Tensor& batch_sizes,
                                  int64_t rows);

}  // namespace fastrnn
