// The step of cells that normalise their rows (cells/cell.h), after a library's product. A block
// serves a batch row, because a norm takes sums over all of it, and goes over the row's units
// several times. A thread's units are the same each time: what it stores for itself needs no
// barrier.
#pragma once

#include "rebuild.h"
#include "step.cuh"

namespace fastrnn::cuda {

constexpr int kNormWarps = 8;
constexpr int kNormThreads = kNormWarps * kWarp;

// Calls f for this thread's part of 0 .. count.
template <class F>
__device__ __forceinline__ void for_mine(int64_t count, const F& f) {
  for (int64_t i = threadIdx.x; i < count; i += kNormThreads) f(i);
}

// Sums over the threads of a row. Each has shared memory of its own, so that none waits until
// all threads have read another.
template <class A>
struct RowSums {
  static constexpr int kMost = 6;  // values that a kernel sums
  static constexpr int kSharedBytes = kMost * kNormWarps * static_cast<int>(sizeof(A));
  A* shared = reinterpret_cast<A*>(shared_memory());

  template <int kCount>
  __device__ __forceinline__ void add_up(A (&values)[kCount]) {
    block_sums<kNormWarps>(values, shared);
    shared += kCount * kNormWarps;
  }
};

// Takes a value v of a row to u.
template <class A>
struct Norm {
  A mean, inverse;  // inverse: 1 / sqrt(variance + epsilon)
  FASTRNN_HD A operator()(A v) const { return (v - mean) * inverse; }
};

// The norms of `kCount` vectors of a row, of which value(k, i) are the elements. The mean comes
// first: the difference of two sums would cancel.
template <int kCount, class A, class Value>
__device__ __forceinline__ void find_norms(RowSums<A>& sums, int64_t size, const Value& value,
                                           Norm<A> (&norms)[kCount]) {
  A total[kCount] = {}, squares[kCount] = {};
  for_mine(size, [&](int64_t i) { for_each<kCount>([&](auto k) { total[k] += value(k, i); }); });
  sums.add_up(total);
  for_each<kCount>([&](auto k) { norms[k].mean = total[k] / A(size); });
  for_mine(size, [&](int64_t i) {
    for_each<kCount>([&](auto k) {
      const A off = value(k, i) - norms[k].mean;
      squares[k] += off * off;
    });
  });
  sums.add_up(squares);
  for_each<kCount>(
      [&](auto k) { norms[k].inverse = A(1) / std::sqrt(squares[k] / A(size) + A(kNormEpsilon)); });
}

// What a row's gates get from x, side 0, and from h, side 1.
template <class Cell, class Scalar>
struct NormedGates {
  using A = Accumulate<Scalar>;
  static constexpr int G = Cell::kGates;
  const Scalar *products[2], *gains[2], *biases[2];  // (G*H) each; product of h null: zeros
  Scalar* saved;  // (K, H), of which the u come after the cell's values; null: not wanted
  int64_t hidden;
  Norm<A> norms[2];

  template <class Step>
  FASTRNN_HD NormedGates(const Step& p, int d, int64_t row, const void* of_h, int64_t row_of_h)
      : products{static_cast<const Scalar*>(p.x_gates) + row * G * p.shape.hidden,
                 of_h ? static_cast<const Scalar*>(of_h) + row_of_h * G * p.shape.hidden : nullptr},
        gains{static_cast<const Scalar*>(p.params[d][0]),
              static_cast<const Scalar*>(p.params[d][1])},
        biases{static_cast<const Scalar*>(p.b_ih[d]), static_cast<const Scalar*>(p.b_hh[d])},
        saved(p.saved ? static_cast<Scalar*>(p.saved) + row * kSavedWithNorms<Cell> * p.shape.hidden
                      : nullptr),
        hidden(p.shape.hidden) {}

  FASTRNN_HD A product(int side, int64_t at) const {
    return products[side] ? Storage<Scalar>::widen(products[side][at]) : A(0);
  }
  __device__ __forceinline__ void normalise(RowSums<A>& sums) {
    find_norms(sums, G * hidden, [&](int side, int64_t at) { return product(side, at); }, norms);
  }

  // Of a unit: what its cell sees; and keeps u for backward.
  FASTRNN_HD void load(int64_t unit, A (&seen)[2][G]) const {
    for_each<2>([&](auto side) {
      for_each<G>([&](auto g) {
        const int64_t at = g * hidden + unit;
        const A u = norms[side](product(side, at));
        if (saved) store<Scalar>(saved, (Cell::kSaved + side * G + g) * hidden + unit, u);
        seen[side][g] = u * Storage<Scalar>::widen(gains[side][at]);
        if (biases[side]) seen[side][g] += Storage<Scalar>::widen(biases[side][at]);
      });
    });
  }
};

// The parameters of a state's norm.
template <class Cell, class Scalar, class Step>
FASTRNN_HD void load_emit_params(const Step& p, int d, int64_t unit, Accumulate<Scalar>* params) {
  for_each<Cell::kParams - Cell::kGains>(
      [&](auto k) { params[k] = Array<Scalar>(p.params[d][Cell::kGains + k])[unit]; });
}

template <class Cell, class Scalar>
__global__ void __launch_bounds__(kNormThreads, 1)
    forward_row(const __grid_constant__ ForwardStep p) {
  using A = Accumulate<Scalar>;
  constexpr bool kEmits = Cell::kNorms == 3;
  const int d = blockIdx.y;
  const Shape& s = p.shape;
  const StepRows& step_rows = p.step_rows[d];
  const int64_t b = blockIdx.x, state_row = d * s.batch + b;
  if (b >= step_rows.now.count) return;
  const Moment m = moment_of(p, step_rows, d, b);
  if (!m.has()) return;
  const int64_t row = d * s.total + step_rows.now.offset + b;
  const void* product = m.from_initial() && p.product_h0 ? p.product_h0 : p.product;
  A* const statistics =
      p.statistics ? static_cast<A*>(p.statistics) + row * Cell::kStatistics : nullptr;
  // Of a unit: 0, what h' is made of; 1, the state.
  const auto emitting = [&](int k, int64_t unit) -> A& {
    return static_cast<A*>(p.emitting)[(2 * state_row + k) * s.hidden + unit];
  };

  RowSums<A> sums;
  NormedGates<Cell, Scalar> gates(p, d, row, m.from_zero() ? nullptr : product, state_row);
  gates.normalise(sums);
  const auto finish = [&](ForwardUpdate<Cell, Scalar>& update, int64_t unit) {
    if (p.zoneout.on) update.zone(p, step_rows, d, b, unit);
    update.save_states(p, step_rows, m, d, b, unit);
  };
  for_mine(s.hidden, [&](int64_t unit) {
    A seen[2][Cell::kGates];
    ForwardUpdate<Cell, Scalar> update;
    update.load_states(p, step_rows, m, d, b, unit);
    gates.load(unit, seen);
    update.run(p, seen[0], seen[1]);
    update.save_gates(p, step_rows, d, b, unit);
    if constexpr (kEmits) {
      emitting(0, unit) = update.next[0];
      emitting(1, unit) = update.next[1];
    } else {
      finish(update, unit);
    }
  });
  if (statistics && threadIdx.x == 0) {
    for_each<2>([&](auto side) { statistics[side] = gates.norms[side].inverse; });
  }
  if constexpr (kEmits) {
    Norm<A> norms[1];
    find_norms(sums, s.hidden, [&](int, int64_t unit) { return emitting(1, unit); }, norms);
    for_mine(s.hidden, [&](int64_t unit) {
      A params[Cell::kParams];
      ForwardUpdate<Cell, Scalar> update;
      if (p.zoneout.on) update.load_states(p, step_rows, m, d, b, unit);
      load_emit_params<Cell, Scalar>(p, d, unit, params);
      update.next[0] = Cell::emit(emitting(0, unit), norms[0](emitting(1, unit)), params);
      update.next[1] = emitting(1, unit);
      finish(update, unit);
    });
    if (statistics && threadIdx.x == 0) {
      statistics[2] = norms[0].mean;
      statistics[3] = norms[0].inverse;
    }
  }
}

// Back through a norm: grad v = (grad u - mean(grad u) - u mean(grad u * u)) / deviation, the means
// over the row.
template <class A>
struct NormGradient {
  A plain, by_unit, inverse;
  FASTRNN_HD A operator()(A grad, A u) const { return (grad - plain - u * by_unit) * inverse; }
};

// One unit of a row in backward_row, as often as it is visited.
template <class Cell, class Scalar>
struct NormedUnit {
  using A = Accumulate<Scalar>;
  static constexpr int G = Cell::kGates, P = Cell::kParams - Cell::kGains;
  static constexpr bool kEmits = Cell::kNorms == 3;
  BackwardUpdate<Cell, Scalar, true> update;
  A kept[Cell::kStates], grad_params[P + 1];
  A u, grad_u;  // of the state, where one is normalised
  int64_t unit;

  // All that reaches the unit's states, from outside and from what the step after has left, but
  // for what comes to a state through its norm.
  FASTRNN_HD NormedUnit(const BackwardStep& p, const StepRows& step_rows, Moment m, int d,
                        int64_t b, int64_t unit, A product, const Norm<A>& norm)
      : unit(unit) {
    update.load(p, step_rows, m, d, b, unit);
    update.load_grad_sequences(p, step_rows, d, b, unit);
    update.collect(p, d, b, unit, product, kept);
    if constexpr (kEmits) {
      A params[P], grad_given;
      load_emit_params<Cell, Scalar>(p, d, unit, params);
      u = norm(update.next[1]);
      Cell::emit_backward(update.saved_value(Cell::kSaved - 1), u, params, update.grad_next[0],
                          &grad_given, &grad_u, grad_params);
      update.grad_next[0] = grad_given;
    }
  }

  // The cell, once its gradients are all there.
  FASTRNN_HD void run(const BackwardStep& p, int d, int64_t b, const NormGradient<A>& through) {
    if constexpr (kEmits) update.grad_next[1] += through(grad_u, u);
    update.run(p, d, b, unit, kept);
  }
};

template <class Cell, class Scalar>
__global__ void __launch_bounds__(kNormThreads, 1)
    backward_row(const __grid_constant__ BackwardStep p) {
  using A = Accumulate<Scalar>;
  using Unit = NormedUnit<Cell, Scalar>;
  constexpr int G = Cell::kGates;
  const int d = blockIdx.y;
  const Shape& s = p.shape;
  const StepRows& step_rows = p.step_rows[d];
  const int64_t b = blockIdx.x, H = s.hidden, state_row = d * s.batch + b;
  if (b >= backward_rows(p, d)) return;
  const Moment m = moment_of(p, step_rows, d, b);
  if (p.grad_full ? !m.has() : !m.visited()) return;
  const auto product = [&](int64_t unit) {
    if (p.grad_full || !m.carried()) return A(0);
    return masked<Scalar>(p, d, b, unit, Array<Scalar>(p.product)[state_row * H + unit]);
  };
  if (m.leaves()) {
    for_mine(H, [&](int64_t unit) {
      BackwardUpdate<Cell, Scalar, true> update;
      update.load(p, step_rows, m, d, b, unit);
      update.leave(p, d, b, unit, product(unit));
    });
    return;
  }

  const int64_t row = d * s.total + step_rows.now.offset + b;
  const A* const statistics = static_cast<const A*>(p.statistics) + row * Cell::kStatistics;
  const Scalar* const units =  // (2, G, H), the u of x and h
      static_cast<const Scalar*>(p.saved) + (row * kSavedWithNorms<Cell> + Cell::kSaved) * H;
  Norm<A> norm_of_state{};
  NormGradient<A> to_state{}, to[2] = {{0, 0, statistics[0]}, {0, 0, statistics[1]}};
  RowSums<A> sums;
  const auto visit = [&](int64_t unit) {
    return Unit(p, step_rows, m, d, b, unit, product(unit), norm_of_state);
  };
  // Calls f(side, g, grad, u, gain) for the gates of a unit: grad is of what the cell has seen.
  const auto for_gates = [&](const Unit& it, const auto& f) {
    for_each<2>([&](auto side) {
      for_each<G>([&](auto g) {
        const int64_t at = g * H + it.unit;
        const A grad = side == 0 ? it.update.grad_x[g] : it.update.grad_h[g];
        f(side, g, grad, Storage<Scalar>::widen(units[side * G * H + at]),
          Array<Scalar>(p.params[d][side])[at]);
      });
    });
  };

  if constexpr (Unit::kEmits) {
    norm_of_state = {statistics[2], statistics[3]};
    A of_state[2] = {};
    for_mine(H, [&](int64_t unit) {
      const Unit it = visit(unit);
      of_state[0] += it.grad_u;
      of_state[1] += it.grad_u * it.u;
    });
    sums.add_up(of_state);
    to_state = {of_state[0] / A(H), of_state[1] / A(H), norm_of_state.inverse};
  }
  A of_gates[4] = {};
  for_mine(H, [&](int64_t unit) {
    Unit it = visit(unit);
    it.run(p, d, b, to_state);
    for_gates(it, [&](auto side, auto, A grad, A u, A gain) {
      of_gates[2 * side] += grad * gain;
      of_gates[2 * side + 1] += grad * gain * u;
    });
  });
  sums.add_up(of_gates);
  for_each<2>([&](auto side) {
    to[side].plain = of_gates[2 * side] / A(G * H);
    to[side].by_unit = of_gates[2 * side + 1] / A(G * H);
  });
  // Last, because it writes what the others read.
  A* const grad_params = static_cast<A*>(p.grad_params) + state_row * (4 * G + Unit::P) * H;
  for_mine(H, [&](int64_t unit) {
    Unit it = visit(unit);
    it.run(p, d, b, to_state);
    const auto add = [&](int64_t at, A grad) { grad_params[at * H + unit] += grad; };
    for_gates(it, [&](auto side, auto g, A grad, A u, A gain) {
      add(side * G + g, grad);
      add((2 + side) * G + g, grad * u);
      (side == 0 ? it.update.grad_x : it.update.grad_h)[g] = to[side](grad * gain, u);
    });
    for_each<Unit::P>([&](auto k) { add(4 * G + k, it.grad_params[k]); });
    it.update.save(p, step_rows, m, d, b, unit);
  });
}

template <class Cell, class Scalar>
__global__ void __launch_bounds__(kNormThreads, 1) rebuild_row(const __grid_constant__ Rebuild p) {
  using A = Accumulate<Scalar>;
  static_assert(!Cell::kSavedReadsState && Cell::kScalars == 0);
  const int64_t row = blockIdx.y * p.shape.total + blockIdx.x;
  RowSums<A> sums;
  NormedGates<Cell, Scalar> gates(p, blockIdx.y, row, p.h_gates, row);
  gates.normalise(sums);
  for_mine(p.shape.hidden, [&](int64_t unit) {
    A seen[2][Cell::kGates], prev[Cell::kStates] = {}, next[Cell::kStates], saved[Cell::kSaved];
    gates.load(unit, seen);
    Rounded<Cell, Scalar>::forward(In<A>{seen[0], seen[1], prev, nullptr, nullptr}, next, saved);
    for_each<Cell::kSaved>(
        [&](auto k) { store<Scalar>(gates.saved, k * p.shape.hidden + unit, saved[k]); });
  });
}

// The launchers.

template <class Scalar, class Params>
cudaError_t launch_normed(void (*kernel)(Params), int64_t rows, const Params& params,
                          cudaStream_t stream) {
  return launch(kernel, static_cast<unsigned>(rows), params.shape.directions, kNormThreads,
                RowSums<Accumulate<Scalar>>::kSharedBytes, stream, params);
}

template <class Cell, class Scalar>
cudaError_t rebuild_rows(const Rebuild& p, cudaStream_t stream) {
  return launch_normed<Scalar>(rebuild_row<Cell, Scalar>, p.shape.total, p, stream);
}

}  // namespace fastrnn::cuda
