// FASTRNN_HD marks a function that the CPU and the CUDA kernels share, FASTRNN_CELL a cell's
// forward, which the compiler itself runs too (cells/graph.h).
#pragma once

#include <type_traits>
#include <utility>

#if defined(__CUDACC__)
#define FASTRNN_HD __host__ __device__ __forceinline__
#else
#define FASTRNN_HD inline __attribute__((always_inline))
#endif
#define FASTRNN_CELL constexpr FASTRNN_HD

namespace fastrnn {

// A number that is a constant wherever it goes; std::integral_constant is the host's alone.
template <int n>
struct Index {
  FASTRNN_CELL operator int() const { return n; }
};

// Calls f(Index<0>) .. f(Index<N - 1>). Constants from the beginning turn local arrays into
// registers, whatever the compiler's loop passes do.
template <class F, int... k>
FASTRNN_HD void for_each_of(const F& f, std::integer_sequence<int, k...>) {
  (f(Index<k>()), ...);
}
template <int N, class F>
FASTRNN_HD void for_each(const F& f) {
  for_each_of(f, std::make_integer_sequence<int, N>());
}

}  // namespace fastrnn
