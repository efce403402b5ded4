// Tier L, any cell, type and size: one launch per time step for all directions, which does the
// recurrent product and the cell update together (fused), or the update after a library's product.
#pragma once

#include <algorithm>
#include <type_traits>

#include "launch.h"
#include "product.cuh"
#include "update.cuh"

namespace fastrnn::cuda {

// Rows that a step of backward works on: its own, and those that have just left their first step.
// (A projected LSTM's leave in gather_projected.)
FASTRNN_HD int64_t backward_rows(const BackwardStep& p, int d) {
  const int64_t now = p.step_rows[d].now.count, after = p.step_rows[d].after.count;
  return p.grad_full || now > after ? now : after;
}

template <class Cell, class Scalar>
FASTRNN_HD void finish(BackwardUpdate<Cell, Scalar, true>& update, const BackwardStep& p, Moment m,
                       int d, int64_t b, int64_t unit, Accumulate<Scalar> product) {
  if (Cell::kRecurrent && !p.grad_full) product = masked<Scalar>(p, d, b, unit, product);
  if (m.leaves()) return update.leave(p, d, b, unit, product);
  load_params<Cell, Scalar>(p, d, unit, update.params);
  update.load_grad_sequences(p, p.step_rows[d], d, b, unit);
  update.compute(p, d, b, unit, product);
  update.save(p, p.step_rows[d], m, d, b, unit);
}

// A block serves kRows batch rows and kUnits hidden units of direction blockIdx.y.
template <int kRows, int kUnits>
struct Tile {
  int row, unit;
  __device__ __forceinline__ explicit Tile(int64_t width) {
    const unsigned across = (static_cast<unsigned>(width) + kUnits - 1) / kUnits;
    row = static_cast<int>(blockIdx.x / across * kRows);
    unit = static_cast<int>(blockIdx.x % across * kUnits);
  }
  static unsigned blocks(int64_t rows, int64_t width) {
    return static_cast<unsigned>((rows + kRows - 1) / kRows * ((width + kUnits - 1) / kUnits));
  }
};

// The 1 in the launch bounds: a spilled register costs more here than a lower occupancy.
template <class Cell, class Scalar, bool kTensorCores, int kRows, bool kAligned>
__global__ void __launch_bounds__(kStepThreads, 1)
    forward_fused(const __grid_constant__ ForwardStep p) {
  using A = Accumulate<Scalar>;
  // A cell with one gate takes two groups of units, so that a tensor core tile is full.
  constexpr int kOctets = Cell::kGates == 1 ? 2 : 1, kUnits = 8 * kOctets;
  constexpr int kEach = (kRows * kUnits + kStepThreads - 1) / kStepThreads;
  using Product = BlockProduct<Scalar, Cell::kGates * kOctets, kRows, kTensorCores>;
  const int d = blockIdx.y;
  const Shape& s = p.shape;
  const StepRows& step_rows = p.step_rows[d];
  const Tile<kRows, kUnits> tile(s.hidden);
  if (tile.row >= step_rows.now.count) return;

  ForwardUpdate<Cell, Scalar> update[kEach];
  Moment moment[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int at = threadIdx.x + i * kStepThreads;
    const int64_t b = tile.row + at / kUnits, unit = tile.unit + at % kUnits;
    if (at >= kRows * kUnits || b >= step_rows.now.count || unit >= s.hidden) continue;
    moment[i] = moment_of(p, step_rows, d, b);
    if (moment[i].has()) update[i].load(p, step_rows, moment[i], d, b, unit);
  }

  const int64_t width = s.directions * s.recurrent;
  const Scalar* output =
      static_cast<const Scalar*>(p.output) + step_rows.before.offset * width + d * s.recurrent;
  const Scalar* h0 = static_cast<const Scalar*>(p.states.initial[0]) + d * s.batch * s.recurrent;
  const Scalar* weights = static_cast<const Scalar*>(p.w_hh[d]);
  Product::template run<kAligned>(
      [&](int half, int lane_unit) {
        const int64_t unit = tile.unit + half / Cell::kGates * 8 + lane_unit;
        const int64_t gate = half % Cell::kGates;
        return weights + (gate * s.hidden + min(unit, s.hidden - 1)) * s.recurrent;
      },
      [&](int row) {
        const int64_t b = min(tile.row + row, step_rows.now.count - 1);
        return moment_of(p, step_rows, d, b).from_before() ? output + b * width
                                                           : h0 + b * s.recurrent;
      },
      s.recurrent);
  __syncthreads();

#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int at = threadIdx.x + i * kStepThreads, row = at / kUnits, u = at % kUnits;
    if (!moment[i].has()) continue;
    A product[Cell::kGates];
#pragma unroll
    for (int g = 0; g < Cell::kGates; ++g) {
      product[g] =
          moment[i].from_zero() ? A(0) : Product::sum(u / 8 * Cell::kGates + g, row, u % 8);
    }
    update[i].compute(p, product);
    if (p.zoneout.on) update[i].zone(p, step_rows, d, tile.row + row, tile.unit + u);
    update[i].save(p, step_rows, moment[i], d, tile.row + row, tile.unit + u);
  }
}

template <class Cell, class Scalar, bool kTensorCores, int kRows, bool kAligned>
__global__ void __launch_bounds__(kStepThreads, 1)
    backward_fused(const __grid_constant__ BackwardStep p) {
  using A = Accumulate<Scalar>;
  constexpr int kUnits = 16;
  constexpr int kEach = (kRows * kUnits + kStepThreads - 1) / kStepThreads;
  using Product = BlockProduct<Scalar, 2, kRows, kTensorCores>;
  const int d = blockIdx.y;
  const Shape& s = p.shape;
  const StepRows& step_rows = p.step_rows[d];
  const int64_t rows = backward_rows(p, d);
  const Tile<kRows, kUnits> tile(s.hidden);
  if (tile.row >= rows) return;

  BackwardUpdate<Cell, Scalar, true> update[kEach];
  Moment moment[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int at = threadIdx.x + i * kStepThreads;
    const int64_t b = tile.row + at / kUnits, unit = tile.unit + at % kUnits;
    if (at >= kRows * kUnits || b >= rows || unit >= s.hidden) continue;
    moment[i] = moment_of(p, step_rows, d, b);
    if (moment[i].visited()) update[i].load(p, step_rows, moment[i], d, b, unit);
  }

  const bool carried = tile.row < step_rows.after.count;  // of at least one row of this block
  if (carried) {
    const int64_t K = Cell::kGates * s.hidden;
    const Scalar* grads =
        static_cast<const Scalar*>(p.grad_h_gates) + (d * s.total + step_rows.after.offset) * K;
    const Scalar* weights = static_cast<const Scalar*>(p.w_hh_t[d]);
    Product::template run<kAligned>(
        [&](int half, int lane_unit) {
          return weights + min(int64_t{tile.unit} + half * 8 + lane_unit, s.hidden - 1) * K;
        },
        [&](int row) {
          return grads + int64_t{min(tile.row + row, step_rows.after.count - 1)} * K;
        },
        K);
  }
  __syncthreads();

#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int at = threadIdx.x + i * kStepThreads, row = at / kUnits, u = at % kUnits;
    if (!moment[i].visited()) continue;
    finish(update[i], p, moment[i], d, tile.row + row, tile.unit + u,
           moment[i].carried() ? Product::sum(u / 8, row, u % 8) : A(0));
  }
}

template <class Cell, class Scalar>
__global__ void __launch_bounds__(kStepThreads)
    forward_update(const __grid_constant__ ForwardStep p) {
  const int d = blockIdx.y;
  const Shape& s = p.shape;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kStepThreads + threadIdx.x;
  const int64_t b = at / s.hidden, unit = at % s.hidden;
  if (b >= p.step_rows[d].now.count) return;
  const Moment m = moment_of(p, p.step_rows[d], d, b);
  if (!m.has()) return;
  ForwardUpdate<Cell, Scalar> update;
  update.load(p, p.step_rows[d], m, d, b, unit);
  const Array<Scalar> given(m.from_initial() && p.product_h0 ? p.product_h0 : p.product);
  Accumulate<Scalar> product[Cell::kGates] = {};
  for (int g = 0; Cell::kRecurrent && g < Cell::kGates && !m.from_zero(); ++g) {
    product[g] = given[((d * s.batch + b) * Cell::kGates + g) * s.hidden + unit];
  }
  update.compute(p, product);
  if (p.zoneout.on) update.zone(p, p.step_rows[d], d, b, unit);
  update.save(p, p.step_rows[d], m, d, b, unit);
}

template <class Cell, class Scalar>
__global__ void __launch_bounds__(kStepThreads)
    backward_update(const __grid_constant__ BackwardStep p) {
  const int d = blockIdx.y;
  const Shape& s = p.shape;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kStepThreads + threadIdx.x;
  const int64_t b = at / s.hidden, unit = at % s.hidden;
  if (b >= backward_rows(p, d)) return;
  const Moment m = moment_of(p, p.step_rows[d], d, b);
  if (p.grad_full ? !m.has() : !m.visited()) return;
  BackwardUpdate<Cell, Scalar, true> update;
  update.load(p, p.step_rows[d], m, d, b, unit);
  const bool given = Cell::kRecurrent && !p.grad_full && m.carried();
  finish(update, p, m, d, b, unit,
         given ? Array<Scalar>(p.product)[(d * s.batch + b) * s.hidden + unit]
               : Accumulate<Scalar>(0));
}

template <class Scalar>
__global__ void __launch_bounds__(kStepThreads)
    gather_projected_rows(const __grid_constant__ BackwardStep p) {
  const int d = blockIdx.y;
  const Shape& s = p.shape;
  const StepRows& step_rows = p.step_rows[d];
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kStepThreads + threadIdx.x;
  const int64_t b = at / s.recurrent, unit = at % s.recurrent;
  if (b >= max(step_rows.now.count, step_rows.after.count)) return;
  const Moment m = moment_of(p, step_rows, d, b);
  if (!m.visited()) return;
  const int64_t state = (d * s.batch + b) * s.recurrent + unit;
  Accumulate<Scalar> grad = 0;
  if (m.carried()) {
    grad = masked<Scalar>(p, d, b, unit, Array<Scalar>(p.product)[state]);
  } else if (m.ends()) {
    grad = Array<Scalar>(p.states.grad_last[0])[state];
  }
  if (m.leaves()) {
    store<Scalar>(p.states.grad_initial[0], state, grad);
    return;
  }
  const int64_t row = step_rows.now.offset + b;
  grad += Array<Scalar>(p.grad_output)[(row * s.directions + d) * s.recurrent + unit];
  store<Scalar>(p.grad_projected, (d * s.total + row) * s.recurrent + unit, grad);
}

// The operand of a masked product: zero in rows without the step, or reset before it.
template <class Scalar>
__global__ void __launch_bounds__(kStepThreads)
    mask_operand_rows(const __grid_constant__ ForwardStep p) {
  const int d = blockIdx.y;
  const Shape& s = p.shape;
  const StepRows& step_rows = p.step_rows[d];
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kStepThreads + threadIdx.x;
  const int64_t b = at / s.recurrent, unit = at % s.recurrent;
  if (b >= step_rows.now.count) return;
  const Moment m = moment_of(p, step_rows, d, b);
  const int64_t state = (d * s.batch + b) * s.recurrent + unit;
  Accumulate<Scalar> h = 0;
  if (m.has() && m.from_before()) {
    const int64_t row = (step_rows.before.offset + b) * s.directions + d;
    h = masked<Scalar>(p, d, b, unit, Array<Scalar>(p.output)[row * s.recurrent + unit]);
  } else if (m.has() && m.from_initial()) {
    h = masked<Scalar>(p, d, b, unit, Array<Scalar>(p.states.initial[0])[state]);
  }
  store<Scalar>(p.operand, state, h);
}

// The launchers. `rows` is the most that any direction has; 0 rows need no launch.

template <class Params>
cudaError_t launch(void (*kernel)(Params), unsigned blocks, int shared_bytes, const Params& params,
                   cudaStream_t stream) {
  return launch(kernel, blocks, params.shape.directions, kStepThreads, shared_bytes, stream,
                params);
}

// Rows of a launch for a step: of the direction that has more, the first or the last.
inline int64_t launch_rows(const ForwardStep& p) {
  return std::max(p.step_rows[0].now.count, p.step_rows[p.shape.directions - 1].now.count);
}
inline int64_t launch_rows(const BackwardStep& p) {
  return std::max(backward_rows(p, 0), backward_rows(p, p.shape.directions - 1));
}

// 16-byte loads: every row of K values begins on 16 bytes.
template <class Scalar>
bool aligned(int64_t K, const void* const (&weights)[kMostDirections],
             std::initializer_list<const void*> others) {
  const auto odd = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % sizeof(Quad) != 0; };
  return K * sizeof(Scalar) % sizeof(Quad) == 0 && std::ranges::none_of(weights, odd) &&
         std::ranges::none_of(others, odd);
}

// Calls f(std::bool_constant<tensor cores>, std::integral_constant<int, rows>) for the tile that
// `kernel` asks for; cudaErrorInvalidValue if there is no such tile for the type.
template <class Cell, class Scalar, class F>
cudaError_t with_tile(const StepKernel& kernel, F f) {
  using Fma = std::false_type;
  using Mma = std::true_type;
  constexpr bool kHasProduct = Cell::kRecurrent;
  if constexpr (kHasProduct && sizeof(Scalar) >= sizeof(float)) {
    if (!kernel.tensor_cores && kernel.rows == 8) return f(Fma{}, std::integral_constant<int, 8>{});
  }
  if constexpr (kHasProduct && sizeof(Scalar) == sizeof(float)) {
    if (!kernel.tensor_cores && kernel.rows == 16)
      return f(Fma{}, std::integral_constant<int, 16>{});
  }
  if constexpr (kHasProduct && sizeof(Scalar) <= sizeof(float)) {
    if (kernel.tensor_cores && kernel.rows == 8) return f(Mma{}, std::integral_constant<int, 8>{});
    if (kernel.tensor_cores && kernel.rows == 32)
      return f(Mma{}, std::integral_constant<int, 32>{});
  }
  return cudaErrorInvalidValue;
}

template <class Scalar>
cudaError_t mask_operand(const ForwardStep& p, cudaStream_t stream) {
  const Shape& s = p.shape;
  const unsigned blocks = Tile<1, kStepThreads>::blocks(1, launch_rows(p) * s.recurrent);
  return launch(mask_operand_rows<Scalar>, blocks, 0, p, stream);
}

template <class Scalar>
cudaError_t gather_projected(const BackwardStep& p, cudaStream_t stream) {
  const Shape& s = p.shape;
  int32_t rows = 0;
  for (int d = 0; d < s.directions; ++d) {
    rows = std::max({rows, p.step_rows[d].now.count, p.step_rows[d].after.count});
  }
  const unsigned blocks = Tile<1, kStepThreads>::blocks(1, rows * s.recurrent);
  return launch(gather_projected_rows<Scalar>, blocks, 0, p, stream);
}

}  // namespace fastrnn::cuda
