// Batch rows that differ in length, sorted for kernels whose number of rows per step never grows.
#pragma once

#include <cstdint>
#include <vector>

namespace fastrnn {

struct SortedRows {
  std::vector<int64_t> order;    // batch rows, longest first
  std::vector<int64_t> offsets;  // the first row of each step; at least one step
};
// Of B lengths. Raises ValueError unless they are within 0 .. T.
SortedRows sort_rows(const char* function, const int64_t* lengths, int64_t B, int64_t T);

}  // namespace fastrnn
