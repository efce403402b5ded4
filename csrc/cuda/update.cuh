// What a thread does for one hidden unit of one batch row, once the recurrent product is known. All
// kernels share these: load() fetches everything that does not depend on the product (before the
// product where that hides its latency), compute() takes the product, save() writes the results.
#pragma once

#include "../cells/cell.h"
#include "../common/philox.h"
#include "dtype.cuh"
#include "params.h"

namespace fastrnn::cuda {

// The cell's parameters of a unit, and the numbers of the call.
template <class Cell, class Scalar, class Step>
FASTRNN_HD void load_params(const Step& p, int d, int64_t unit, Accumulate<Scalar>* params) {
  for_each<Cell::kParams>([&](auto k) { params[k] = Array<Scalar>(p.params[d][k])[unit]; });
}
template <class Cell, class A, class Step>
FASTRNN_HD void load_scalars(const Step& p, A* scalars) {
  for_each<Cell::kScalars>([&](auto k) { scalars[k] = static_cast<A>(p.scalars[k]); });
}

// A value of unit `unit` of h, or of its gradient, on its way through the operand mask.
template <class Scalar, class Step>
FASTRNN_HD Accumulate<Scalar> masked(const Step& p, int d, int64_t b, int64_t unit,
                                     Accumulate<Scalar> value) {
  if (!p.operand_mask) return value;
  const Shape& s = p.shape;
  return value * Array<Scalar>(p.operand_mask)[(d * s.batch + b) * s.recurrent + unit];
}

// Whether a unit keeps its h in the step, and its other states: 0 or 1, or the rates.
template <class A, class Step>
FASTRNN_HD void load_zones(const Step& p, int d, int64_t b, int64_t unit, A* keep) {
  const Zoneout& zoneout = p.zoneout;
  uint32_t words[] = {static_cast<uint32_t>(unit), static_cast<uint32_t>(p.time[d]), p.backwards[d],
                      0};
  if (zoneout.seeds) philox(words, static_cast<uint64_t>(zoneout.seeds[b]));
  for (int k = 0; k < 2; ++k) {
    const bool stays = words[k] >> (32 - kChanceBits) < zoneout.thresholds[k];
    keep[k] = zoneout.seeds ? A(stays) : A(zoneout.rates[k]);
  }
}

// Where the units of a state of a row begin in `given`.
template <class Cell, int state>
FASTRNN_HD int64_t given_at(int64_t row, int64_t hidden) {
  constexpr int place = place_among(Cell::kBackwardNext, state);
  constexpr int count = place_among(Cell::kBackwardNext, kMostStates);
  return (row * count + place) * hidden;
}

template <class Cell, class Scalar>
struct ForwardUpdate {
  using A = Accumulate<Scalar>;
  static constexpr int kCarried = Cell::kCarried;
  A x[Cell::kGates], h_bias[Cell::kGates], prev[Cell::kStates], params[Cell::kParams + 1];
  A next[Cell::kStates], saved[Cell::kSaved + 1];
  A unmasked;  // prev[0], without the operand mask that a cell without W_hh sees

  FASTRNN_HD void load(const ForwardStep& p, const Tick& tick, Moment m, int d, int64_t b,
                       int64_t unit) {
    load_gates(p, tick, d, b, unit);
    load_states(p, tick, m, d, b, unit);
    load_params<Cell, Scalar>(p, d, unit, params);
    for (int g = 0; g < Cell::kGates; ++g) {
      h_bias[g] = 0;
      if (p.b_ih[d]) {
        x[g] += Array<Scalar>(p.b_ih[d])[g * p.shape.hidden + unit];
        h_bias[g] = Array<Scalar>(p.b_hh[d])[g * p.shape.hidden + unit];
      }
    }
  }

  // x still lacks its bias; h_bias and params are not set.
  FASTRNN_HD void load_gates(const ForwardStep& p, const Tick& tick, int d, int64_t b,
                             int64_t unit) {
    const Shape& s = p.shape;
    const int64_t gates = (d * s.total + tick.now.offset + b) * Cell::kGates * s.hidden + unit;
    const Array<Scalar> x_gates(p.x_gates);
    for (int g = 0; g < Cell::kGates; ++g) x[g] = x_gates[gates + g * s.hidden];
  }

  FASTRNN_HD void load_states(const ForwardStep& p, const Tick& tick, Moment m, int d, int64_t b,
                              int64_t unit) {
    const Shape& s = p.shape;
    for_each<Cell::kStates>([&](auto k) { prev[k] = A(Cell::template kInitial<k>); });
    unmasked = prev[0];
    if (m.from_zero()) return;
    const bool starts = m.from_initial();
    const int64_t state = (d * s.batch + b) * s.hidden + unit;
    if (s.recurrent == s.hidden) {  // else h is projected, and no cell can use it unit by unit
      prev[0] = starts
                    ? Array<Scalar>(p.states.initial[0])[state]
                    : Array<Scalar>(p.output)[(tick.before.offset + b) * s.directions * s.hidden +
                                              d * s.hidden + unit];
      unmasked = prev[0];
      if constexpr (!Cell::kRecurrent) prev[0] = masked<Scalar>(p, d, b, unit, prev[0]);
    }
    for_each<kCarried>([&](auto k) {
      prev[k + 1] = starts ? load_carried<Scalar>(p.states.initial[k + 1], p.states.wide, state)
                           : Array<A>(p.states.carried)[carried_at(p, d, tick.before, b, k) + unit];
    });
  }

  FASTRNN_HD void compute(const ForwardStep& p, const A* product) {
    A h[Cell::kGates], scalars[Cell::kScalars + 1];
    for (int g = 0; g < Cell::kGates; ++g) h[g] = product[g] + h_bias[g];
    load_scalars<Cell>(p, scalars);
    Cell::forward(In<A>{x, h, prev, params, scalars}, next, saved);
  }

  // With zoneout, between compute() and save(): `unmasked` is h before the step.
  FASTRNN_HD void zone(const ForwardStep& p, const Tick& tick, int d, int64_t b, int64_t unit) {
    A keep[2];
    load_zones(p, d, b, unit, keep);
    for_each<Cell::kStates>([&](auto k) {
      if constexpr ((Cell::kBackwardNext >> k & 1) != 0) {
        const int64_t row = d * p.shape.total + tick.now.offset + b;
        if (p.given) store<A>(p.given, given_at<Cell, k>(row, p.shape.hidden) + unit, next[k]);
      }
      const A kept = keep[k > 0];
      next[k] = kept * (k > 0 ? prev[k] : unmasked) + (A(1) - kept) * next[k];
    });
  }

  FASTRNN_HD void save(const ForwardStep& p, const Tick& tick, Moment m, int d, int64_t b,
                       int64_t unit) const {
    const Shape& s = p.shape;
    const int64_t row = tick.now.offset + b, state = (d * s.batch + b) * s.hidden + unit;
    store<Scalar>(p.h[d], row * p.h_stride + unit, next[0]);
    if (m.ends() && p.states.last[0]) store<Scalar>(p.states.last[0], state, next[0]);
    for_each<kCarried>([&](auto k) {
      store<A>(p.states.carried, carried_at(p, d, tick.now, b, k) + unit, next[k + 1]);
      if (m.ends()) store_carried<Scalar>(p.states.last[k + 1], p.states.wide, state, next[k + 1]);
      if (p.states.sequence[k + 1]) {
        const int64_t at = (row * s.directions + d) * s.hidden + unit;
        store<Scalar>(p.states.sequence[k + 1], at, next[k + 1]);
      }
    });
    if (p.saved) {
      for (int k = 0; k < Cell::kSaved; ++k) {
        const int64_t at = ((d * s.total + row) * Cell::kSaved + k) * s.hidden + unit;
        store<Scalar>(p.saved, at, saved[k]);
      }
    }
  }

 private:
  static FASTRNN_HD int64_t carried_at(const ForwardStep& p, int d, const Rows& rows, int64_t b,
                                       int k) {
    const int64_t row = p.carried_rows == p.shape.total ? rows.offset + b : b;
    return ((d * p.carried_rows + row) * kCarried + k) * p.shape.hidden;
  }
};

// kZones: there may be zoneout.
template <class Cell, class Scalar, bool kZones = false>
struct BackwardUpdate {
  using A = Accumulate<Scalar>;
  static constexpr int kCarried = Cell::kCarried, P = Cell::kParams;
  A saved[Cell::kSaved + 1], prev[Cell::kStates], next[Cell::kStates], grad_next[Cell::kStates];
  A direct, params[P + 1], params_sum[P + 1];
  A grad_x[Cell::kGates], grad_h[Cell::kGates], grad_prev[Cell::kStates], grad_params[P + 1];

  // The row has this step, or has just left its first one, and its gradient goes out to h0.
  FASTRNN_HD void load(const BackwardStep& p, const Tick& tick, Moment m, int d, int64_t b,
                       int64_t unit) {
    const Shape& s = p.shape;
    const int64_t state = (d * s.batch + b) * s.hidden + unit;
    direct = has_direct(p) && m.carried() ? Array<A>(p.direct)[state] : A(0);
    if (!m.has()) return;

    const int64_t row = tick.now.offset + b, before = tick.before.offset + b;
    const int64_t width = s.directions * s.hidden, column = d * s.hidden + unit;
    for (int k = 0; k < Cell::kSaved; ++k) {
      saved[k] = Array<Scalar>(p.saved)[((d * s.total + row) * Cell::kSaved + k) * s.hidden + unit];
    }
    if constexpr ((Cell::kBackwardPrev & kStateH) != 0) {
      prev[0] = m.from_before()    ? Array<Scalar>(p.output)[before * width + column]
                : m.from_initial() ? Array<Scalar>(p.states.initial[0])[state]
                                   : A(0);
      if constexpr (!Cell::kRecurrent) prev[0] = masked<Scalar>(p, d, b, unit, prev[0]);
    }
    if constexpr ((Cell::kBackwardNext & kStateH) != 0) {
      next[0] = given<0>(p, d * s.total + row, unit, Array<Scalar>(p.output)[row * width + column]);
    }
    for_each<kCarried>([&](auto k) {
      constexpr int i = k + 1;
      const Array<A> carried(p.states.carried);
      if constexpr ((Cell::kBackwardPrev >> i & 1) != 0) {
        prev[i] = m.from_before() ? carried[carried_at(p, d, before, k) + unit]
                  : m.from_initial()
                      ? load_carried<Scalar>(p.states.initial[i], p.states.wide, state)
                      : A(Cell::template kInitial<i>);
      }
      if constexpr ((Cell::kBackwardNext >> i & 1) != 0)
        next[i] = given<i>(p, d * s.total + row, unit, carried[carried_at(p, d, row, k) + unit]);
      grad_next[i] = m.ends() && p.states.grad_last[i] ? Array<Scalar>(p.states.grad_last[i])[state]
                                                       : Array<A>(p.grad_carried[i])[state];
    });
    for_each<P>(
        [&](auto k) { params_sum[k] = Array<A>(p.grad_params)[params_at(p, d, b, k) + unit]; });
    grad_next[0] = p.grad_full ? Array<Scalar>(p.grad_full)[state]
                               : Array<Scalar>(p.grad_output)[row * width + column];
    if (!p.grad_full && m.ends()) grad_next[0] += Array<Scalar>(p.states.grad_last[0])[state];
  }

  // What is rarely there, and so waited for only there: after load(), before compute().
  FASTRNN_HD void load_grad_sequences(const BackwardStep& p, const Tick& tick, int d, int64_t b,
                                      int64_t unit) {
    for_each<kCarried>([&](auto k) {
      const int64_t at = ((tick.now.offset + b) * p.shape.directions + d) * p.shape.hidden + unit;
      if (p.states.grad_sequence[k + 1])
        grad_next[k + 1] += Array<Scalar>(p.states.grad_sequence[k + 1])[at];
    });
  }

  // product: (grad_h_gates W_hh) of the step after, masked, or 0 where there is none or grad_full
  // has it. params are the caller's to load.
  FASTRNN_HD void compute(const BackwardStep& p, int d, int64_t b, int64_t unit, A product) {
    A scalars[Cell::kScalars + 1], kept[Cell::kStates];
    load_scalars<Cell>(p, scalars);
    grad_next[0] += product + direct;
    const bool zoned = kZones && p.zoneout.on;
    if (zoned) {
      A keep[2];
      load_zones(p, d, b, unit, keep);
      for_each<Cell::kStates>([&](auto k) {
        kept[k] = keep[k > 0] * grad_next[k];
        grad_next[k] -= kept[k];
      });
    }
    Cell::backward(saved, In<A>{nullptr, nullptr, prev, params, scalars}, next, grad_next, grad_x,
                   grad_h, grad_prev, grad_params);
    if constexpr (!Cell::kRecurrent) grad_prev[0] = masked<Scalar>(p, d, b, unit, grad_prev[0]);
    if (zoned) for_each<Cell::kStates>([&](auto k) { grad_prev[k] += kept[k]; });
  }

  FASTRNN_HD void save(const BackwardStep& p, const Tick& tick, Moment m, int d, int64_t b,
                       int64_t unit) const {
    const Shape& s = p.shape;
    const int64_t row = d * s.total + tick.now.offset + b;
    const int64_t state = (d * s.batch + b) * s.hidden + unit;
    const int64_t gates = row * Cell::kGates * s.hidden + unit;
    for (int g = 0; g < Cell::kGates; ++g) {
      store<Scalar>(p.grad_x_gates, gates + g * s.hidden, grad_x[g]);
      if (!Cell::kSharedGateGrad) store<Scalar>(p.grad_h_gates, gates + g * s.hidden, grad_h[g]);
    }
    if (has_direct(p)) store<A>(p.direct, state, grad_prev[0]);
    // Zero where the state before was none of the step before's, nor an initial one.
    for_each<kCarried>([&](auto k) {
      store<A>(p.grad_carried[k + 1], state, m.from_zero() ? A(0) : grad_prev[k + 1]);
    });
    for_each<P>([&](auto k) {
      store<A>(p.grad_params, params_at(p, d, b, k) + unit, params_sum[k] + grad_params[k]);
    });
  }

  // In the place of compute() and save() for a row that has left its first step.
  FASTRNN_HD void leave(const BackwardStep& p, int d, int64_t b, int64_t unit, A product) const {
    store<Scalar>(p.states.grad_initial[0], (d * p.shape.batch + b) * p.shape.hidden + unit,
                  product + direct);
  }

 private:
  static FASTRNN_HD bool has_direct(const BackwardStep& p) {
    return Cell::kDirectGrad || (kZones && p.zoneout.on);
  }
  // A state after the step as the cell gave it: `after`, or with zoneout what forward kept.
  template <int state>
  static FASTRNN_HD A given(const BackwardStep& p, int64_t row, int64_t unit, A after) {
    if (!kZones || !p.given) return after;
    return Array<A>(p.given)[given_at<Cell, state>(row, p.shape.hidden) + unit];
  }
  static FASTRNN_HD int64_t carried_at(const BackwardStep& p, int d, int64_t row, int k) {
    return ((d * p.shape.total + row) * kCarried + k) * p.shape.hidden;
  }
  static FASTRNN_HD int64_t params_at(const BackwardStep& p, int d, int64_t b, int k) {
    return ((d * p.shape.batch + b) * P + k) * p.shape.hidden;
  }
};

}  // namespace fastrnn::cuda
