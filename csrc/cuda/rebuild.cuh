// The kernel of rebuild.h.
#pragma once

#include "rebuild.h"
#include "update.cuh"

namespace fastrnn::cuda {

constexpr int kRebuildThreads = 256;

template <class Cell, class Scalar>
__global__ void __launch_bounds__(kRebuildThreads)
    rebuild_saved(const __grid_constant__ Rebuild p) {
  using A = Accumulate<Scalar>;
  const int d = blockIdx.y;
  const Shape& s = p.shape;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kRebuildThreads + threadIdx.x;
  if (at >= s.total * s.hidden) return;
  const int64_t row = d * s.total + at / s.hidden, unit = at % s.hidden;

  A x[Cell::kGates], h[Cell::kGates], saved[Cell::kSaved];
  const Array<Scalar> x_gates(p.x_gates), h_gates(p.h_gates);
#pragma unroll
  for (int g = 0; g < Cell::kGates; ++g) {
    const int64_t gate = (row * Cell::kGates + g) * s.hidden + unit;
    x[g] = x_gates[gate];
    h[g] = h_gates[gate];
    if (p.b_ih[d]) {
      x[g] += Array<Scalar>(p.b_ih[d])[g * s.hidden + unit];
      h[g] += Array<Scalar>(p.b_hh[d])[g * s.hidden + unit];
    }
  }
  A prev[Cell::kStates] = {}, next[Cell::kStates];
  A params[Cell::kParams + 1], scalars[Cell::kScalars + 1];
  if constexpr (Cell::kSavedReadsState) {
    const int64_t state = row * s.hidden + unit;
    if (p.prev[0]) prev[0] = Array<Scalar>(p.prev[0])[state];
    for_each<Cell::kCarried>([&](auto k) { prev[k + 1] = Array<A>(p.prev[k + 1])[state]; });
  }
  load_params<Cell, Scalar>(p, d, unit, params);
  load_scalars<Cell>(p, scalars);
  Rounded<Cell, Scalar>::forward(In<A>{x, h, prev, params, scalars}, next, saved);
#pragma unroll
  for (int k = 0; k < Cell::kSaved; ++k) {
    store<Scalar>(p.saved, (row * Cell::kSaved + k) * s.hidden + unit, saved[k]);
  }
}

// cudaErrorInvalidValue if the cell saves nothing.
template <class Cell, class Scalar>
cudaError_t rebuild_layer(const Rebuild& p, cudaStream_t stream) {
  if constexpr (Cell::kSaved > 0) {
    const int64_t count = p.shape.total * p.shape.hidden;
    const auto blocks = static_cast<unsigned>((count + kRebuildThreads - 1) / kRebuildThreads);
    return launch(rebuild_saved<Cell, Scalar>, blocks, p.shape.directions, kRebuildThreads, 0,
                  stream, p);
  } else {
    return cudaErrorInvalidValue;
  }
}

}  // namespace fastrnn::cuda
