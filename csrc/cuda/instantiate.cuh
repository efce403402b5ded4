// The launchers of a cell's steps, and its kernels in every storage type: what a file of inst/
// consists of.
#pragma once

#include "norm.cuh"

namespace fastrnn::cuda {

template <class Cell, class Scalar>
cudaError_t forward_step(const StepKernel& kernel, const ForwardStep& p, cudaStream_t stream) {
  const Shape& s = p.shape;
  const int64_t rows = launch_rows(p);
  if constexpr (Cell::kNorms > 0) {
    if (kernel.fused) return cudaErrorInvalidValue;
    return launch_normed<Scalar>(forward_row<Cell, Scalar>, rows, p, stream);
  } else {
    if (!kernel.fused || !Cell::kRecurrent) {
      const unsigned blocks = Tile<1, kStepThreads>::blocks(1, rows * s.hidden);
      return launch(forward_update<Cell, Scalar>, blocks, 0, p, stream);
    }
    const bool wide = aligned<Scalar>(s.recurrent, p.w_hh, {p.states.initial[0], p.output});
    return with_tile<Cell, Scalar>(kernel, [&](auto tensor_cores, auto tile_rows) {
      constexpr int kOctets = Cell::kGates == 1 ? 2 : 1;
      constexpr bool kMma = decltype(tensor_cores)::value;
      constexpr int kRows = decltype(tile_rows)::value;
      using Product = BlockProduct<Scalar, Cell::kGates * kOctets, kRows, kMma>;
      const unsigned blocks = Tile<kRows, 8 * kOctets>::blocks(rows, s.hidden);
      return launch(wide ? forward_fused<Cell, Scalar, kMma, kRows, true>
                         : forward_fused<Cell, Scalar, kMma, kRows, false>,
                    blocks, Product::kSharedBytes, p, stream);
    });
  }
}

template <class Cell, class Scalar>
cudaError_t backward_step(const StepKernel& kernel, const BackwardStep& p, cudaStream_t stream) {
  const Shape& s = p.shape;
  const int64_t rows = launch_rows(p);
  if constexpr (Cell::kNorms > 0) {
    if (kernel.fused) return cudaErrorInvalidValue;
    return launch_normed<Scalar>(backward_row<Cell, Scalar>, rows, p, stream);
  } else {
    if (!kernel.fused || !Cell::kRecurrent) {
      const unsigned blocks = Tile<1, kStepThreads>::blocks(1, rows * s.hidden);
      return launch(backward_update<Cell, Scalar>, blocks, 0, p, stream);
    }
    const int64_t K = Cell::kGates * s.hidden;
    const bool wide = aligned<Scalar>(K, p.w_hh_t, {p.grad_h_gates});
    return with_tile<Cell, Scalar>(kernel, [&](auto tensor_cores, auto tile_rows) {
      constexpr bool kMma = decltype(tensor_cores)::value;
      constexpr int kRows = decltype(tile_rows)::value;
      using Product = BlockProduct<Scalar, 2, kRows, kMma>;
      const unsigned blocks = Tile<kRows, 16>::blocks(rows, s.hidden);
      return launch(wide ? backward_fused<Cell, Scalar, kMma, kRows, true>
                         : backward_fused<Cell, Scalar, kMma, kRows, false>,
                    blocks, Product::kSharedBytes, p, stream);
    });
  }
}

}  // namespace fastrnn::cuda

#define FASTRNN_INSTANTIATE_FOR(Cell, Scalar)                                              \
  template cudaError_t forward_step<Cell, Scalar>(const StepKernel&, const ForwardStep&,   \
                                                  cudaStream_t);                           \
  template cudaError_t backward_step<Cell, Scalar>(const StepKernel&, const BackwardStep&, \
                                                   cudaStream_t);

#define FASTRNN_INSTANTIATE(Cell)              \
  namespace fastrnn::cuda {                    \
  FASTRNN_INSTANTIATE_FOR(Cell, double)        \
  FASTRNN_INSTANTIATE_FOR(Cell, float)         \
  FASTRNN_INSTANTIATE_FOR(Cell, __nv_bfloat16) \
  FASTRNN_INSTANTIATE_FOR(Cell, __half)        \
  }
