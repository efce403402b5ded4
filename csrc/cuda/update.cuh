// What a thread does for one hidden unit of one batch row, once the recurrent product is known. All
// kernels share these: load() fetches everything that does not depend on the product (before the
// product where that hides its latency), compute() takes the product, save() writes the results.
// What load() fetches of 16-bit types stays as it is in memory until compute(): to widen a value
// waits for its load, and the loads would follow each other instead of being in flight together.
#pragma once

#include "../cells/cell.h"
#include "../common/philox.h"
#include "dtype.cuh"
#include "params.h"
#include "rounded.cuh"

namespace fastrnn::cuda {

// The cell's parameters of a unit, and the numbers of the call.
template <class Cell, class Scalar, class Step, class To>
FASTRNN_HD void load_params(const Step& p, int d, int unit, To* params) {
  for_each<Cell::kParams>([&](auto k) { params[k] = Array<Scalar, To>(p.params[d][k])[unit]; });
}
template <class Cell, class A, class Step>
FASTRNN_HD void load_scalars(const Step& p, A* scalars) {
  for_each<Cell::kScalars>([&](auto k) { scalars[k] = static_cast<A>(p.scalars[k]); });
}

// Of unit `unit` of a batch row in (D, B, H), in (N, D * H) and in (D, N, count, H).
FASTRNN_HD Place state_at(const Shape& s, int d, int b, int unit) {
  return {d * static_cast<int>(s.batch) + b, static_cast<int>(s.hidden), unit};
}
FASTRNN_HD Place output_at(const Shape& s, int d, const Rows& rows, int b, int unit) {
  const int hidden = static_cast<int>(s.hidden);
  return {row_of(s, 0, rows, b), static_cast<int>(s.directions) * hidden, d * hidden + unit};
}
FASTRNN_HD Place many_at(const Shape& s, int d, const Rows& rows, int b, int count, int unit) {
  return {row_of(s, d, rows, b), count * static_cast<int>(s.hidden), unit};
}

// A value of unit `unit` of h, or of its gradient, on its way through the operand mask.
template <class Scalar, class Step>
FASTRNN_HD Accumulate<Scalar> masked(const Step& p, int d, int b, int unit,
                                     Accumulate<Scalar> value) {
  if (!p.operand_mask) return value;
  const Shape& s = p.shape;
  return value * Array<Scalar>(p.operand_mask)[(d * s.batch + b) * s.recurrent + unit];
}

// Whether a unit keeps its h in the step, and its other states: 0 or 1, or the rates.
template <class A, class Step>
FASTRNN_HD void load_zones(const Step& p, int d, int b, int unit, A* keep) {
  const Zoneout& zoneout = p.zoneout;
  uint32_t words[] = {static_cast<uint32_t>(unit), static_cast<uint32_t>(p.time[d]), 0, 0};
  if (zoneout.seeds) philox(words, static_cast<uint64_t>(zoneout.seeds[d * p.shape.batch + b]));
  for (int k = 0; k < 2; ++k) {
    const bool stays = words[k] >> (32 - kChanceBits) < zoneout.thresholds[k];
    keep[k] = zoneout.seeds ? A(stays) : A(zoneout.rates[k]);
  }
}

// Unit `unit` of a state of a row in `given`.
template <class Cell, int state>
FASTRNN_HD Place given_at(int row, int64_t hidden, int unit) {
  constexpr int place = place_among(Cell::kBackwardNext, state);
  constexpr int count = place_among(Cell::kBackwardNext, kMostStates);
  const int units = static_cast<int>(hidden);
  return {row, count * units, place * units + unit};
}

template <class Cell, class Scalar>
struct ForwardUpdate {
  using A = Accumulate<Scalar>;
  using Raw = Array<Scalar, Scalar>;
  static constexpr int kCarried = Cell::kCarried;
  Scalar x[Cell::kGates], h;  // x W_ih^T and the h of the step before, as in memory
  A prev[Cell::kStates], params[Cell::kParams + 1];
  A next[Cell::kStates], saved[Cell::kSaved + 1];

  FASTRNN_HD void load(const ForwardStep& p, const StepRows& step_rows, Moment m, int d, int b,
                       int unit) {
    load_gates(p, step_rows, d, b, unit);
    load_states(p, step_rows, m, d, b, unit);
    load_params<Cell, Scalar>(p, d, unit, params_in_memory_);
    for (int g = 0; g < Cell::kGates; ++g) {
      const int64_t at = g * p.shape.hidden + unit;
      biases_[0][g] = p.b_ih[d] ? Raw(p.b_ih[d])[at] : Storage<Scalar>::narrow(0);
      biases_[1][g] = p.b_hh[d] ? Raw(p.b_hh[d])[at] : Storage<Scalar>::narrow(0);
    }
  }

  FASTRNN_HD void load_gates(const ForwardStep& p, const StepRows& step_rows, int d, int b,
                             int unit) {
    const int hidden = static_cast<int>(p.shape.hidden);
    const Scalar* x_gates = many_at(p.shape, d, step_rows.now, b, Cell::kGates, unit)
                                .in(static_cast<const Scalar*>(p.x_gates));
    for (int g = 0; g < Cell::kGates; ++g) x[g] = x_gates[int64_t{hidden} * g];
  }

  FASTRNN_HD void load_states(const ForwardStep& p, const StepRows& step_rows, Moment m, int d,
                              int b, int unit) {
    const Shape& s = p.shape;
    for_each<Cell::kStates>([&](auto k) { prev[k] = A(Cell::template kInitial<k>); });
    h = Storage<Scalar>::narrow(prev[0]);
    if constexpr (!Cell::kRecurrent) h_mask_ = masked<Scalar>(p, d, b, unit, A(1));
    if (m.from_zero()) return;
    const bool starts = m.from_initial();
    const Place state = state_at(s, d, b, unit);
    if (s.recurrent == s.hidden) {  // else h is projected, and no cell can use it unit by unit
      const Place before = output_at(s, d, step_rows.before, b, unit);
      h = starts ? Raw(p.states.initial[0])[state] : Raw(p.output)[before];
    }
    for_each<kCarried>([&](auto k) {
      prev[k + 1] =
          starts ? load_carried<Scalar>(p.states.initial[k + 1], p.states.wide, state)
                 : Array<A>(p.states.carried)[carried_at(p, d, step_rows.before, b, k, unit)];
    });
  }

  // With the biases and parameters of load().
  FASTRNN_HD void compute(const ForwardStep& p, const A* product) {
    for_each<Cell::kParams>(
        [&](auto k) { params[k] = Storage<Scalar>::widen(params_in_memory_[k]); });
    compute(p, product, [&](int of, int g) { return Storage<Scalar>::widen(biases_[of][g]); });
  }

  // bias(0, g) of x, bias(1, g) of h; params are the caller's to load.
  template <class Bias>
  FASTRNN_HD void compute(const ForwardStep& p, const A* product, Bias bias) {
    A of_x[Cell::kGates], of_h[Cell::kGates];
    for (int g = 0; g < Cell::kGates; ++g) {
      of_x[g] = Storage<Scalar>::widen(x[g]) + bias(0, g);
      of_h[g] = product[g] + bias(1, g);
    }
    run(p, of_x, of_h);
  }

  // The cell, on what it sees of x and h; params are the caller's to load.
  FASTRNN_HD void run(const ForwardStep& p, const A* of_x, const A* of_h) {
    A scalars[Cell::kScalars + 1];
    prev[0] = Storage<Scalar>::widen(h);
    if constexpr (!Cell::kRecurrent) prev[0] *= h_mask_;  // else the product's operand is masked
    load_scalars<Cell>(p, scalars);
    Rounded<Cell, Scalar>::forward(In<A>{of_x, of_h, prev, params, scalars}, next, saved);
  }

  // With zoneout, between compute() and save().
  FASTRNN_HD void zone(const ForwardStep& p, const StepRows& step_rows, int d, int b, int unit) {
    A keep[2];
    load_zones(p, d, b, unit, keep);
    for_each<Cell::kStates>([&](auto k) {
      if constexpr ((Cell::kBackwardNext >> k & 1) != 0) {
        const int row = row_of(p.shape, d, step_rows.now, b);
        if (p.given) store<A>(p.given, given_at<Cell, k>(row, p.shape.hidden, unit), next[k]);
      }
      const A kept = keep[k > 0];
      next[k] = kept * (k > 0 ? prev[k] : Storage<Scalar>::widen(h)) + (A(1) - kept) * next[k];
    });
  }

  FASTRNN_HD void save(const ForwardStep& p, const StepRows& step_rows, Moment m, int d, int b,
                       int unit) const {
    save_states(p, step_rows, m, d, b, unit);
    save_gates(p, step_rows, d, b, unit);
  }

  FASTRNN_HD void save_states(const ForwardStep& p, const StepRows& step_rows, Moment m, int d,
                              int b, int unit) const {
    const Shape& s = p.shape;
    const Place state = state_at(s, d, b, unit);
    const int row = row_of(s, 0, step_rows.now, b);
    store<Scalar>(p.h[d], Place{row, static_cast<int>(p.h_stride), unit}, next[0]);
    if (m.ends() && p.states.last[0]) store<Scalar>(p.states.last[0], state, next[0]);
    for_each<kCarried>([&](auto k) {
      store<A>(p.states.carried, carried_at(p, d, step_rows.now, b, k, unit), next[k + 1]);
      if (m.ends()) store_carried<Scalar>(p.states.last[k + 1], p.states.wide, state, next[k + 1]);
      if (p.states.sequence[k + 1])
        store<Scalar>(p.states.sequence[k + 1], output_at(s, d, step_rows.now, b, unit),
                      next[k + 1]);
    });
  }

  FASTRNN_HD void save_gates(const ForwardStep& p, const StepRows& step_rows, int d, int b,
                             int unit) const {
    if (!p.saved) return;
    const int hidden = static_cast<int>(p.shape.hidden);
    Scalar* to = many_at(p.shape, d, step_rows.now, b, kSavedWithNorms<Cell>, unit)
                     .in(static_cast<Scalar*>(p.saved));
    for (int k = 0; k < Cell::kSaved; ++k) store<Scalar>(to, int64_t{hidden} * k, saved[k]);
  }

 private:
  Scalar biases_[2][Cell::kGates], params_in_memory_[Cell::kParams + 1];
  A h_mask_;  // of a cell without W_hh

  static FASTRNN_HD Place carried_at(const ForwardStep& p, int d, const Rows& rows, int b, int k,
                                     int unit) {
    const int hidden = static_cast<int>(p.shape.hidden);
    const int first = p.carried_rows == p.shape.total ? rows.offset : 0;
    return {d * static_cast<int>(p.carried_rows) + first + b, kCarried * hidden, k * hidden + unit};
  }
};

// kZones: there may be zoneout.
template <class Cell, class Scalar, bool kZones = false>
struct BackwardUpdate {
  using A = Accumulate<Scalar>;
  using Raw = Array<Scalar, Scalar>;
  static constexpr int kCarried = Cell::kCarried;
  static constexpr int P = Cell::kNorms > 0 ? 0 : Cell::kParams;  // norm.cuh has those of norms
  A prev[Cell::kStates], next[Cell::kStates], grad_next[Cell::kStates];
  A direct, params[P + 1], params_sum[P + 1];
  A grad_x[Cell::kGates], grad_h[Cell::kGates], grad_prev[Cell::kStates], grad_params[P + 1];

  // The row has this step, or has just left its first one, and its gradient goes out to h0.
  FASTRNN_HD void load(const BackwardStep& p, const StepRows& step_rows, Moment m, int d, int b,
                       int unit) {
    const Shape& s = p.shape;
    const Place state = state_at(s, d, b, unit);
    direct = has_direct(p) && m.carried() ? Array<A>(p.direct)[state] : A(0);
    if (!m.has()) return;

    const int hidden = static_cast<int>(s.hidden);
    const Scalar* saved = many_at(s, d, step_rows.now, b, kSavedWithNorms<Cell>, unit)
                              .in(static_cast<const Scalar*>(p.saved));
    for (int k = 0; k < Cell::kSaved; ++k) saved_[k] = saved[int64_t{hidden} * k];
    const Place here = output_at(s, d, step_rows.now, b, unit);
    if constexpr ((Cell::kBackwardPrev & kStateH) != 0) {
      h_prev_ = Storage<Scalar>::narrow(0);
      if (m.from_before()) h_prev_ = Raw(p.output)[output_at(s, d, step_rows.before, b, unit)];
      if (m.from_initial()) h_prev_ = Raw(p.states.initial[0])[state];
    }
    if constexpr ((Cell::kBackwardNext & kStateH) != 0) {
      h_next_ = Raw(p.output)[here];
      if (kZones && p.given) given_h_ = given<0>(p, row_of(s, d, step_rows.now, b), unit, A(0));
    }
    for_each<kCarried>([&](auto k) {
      constexpr int i = k + 1;
      const Array<A> carried(p.states.carried);
      if constexpr ((Cell::kBackwardPrev >> i & 1) != 0) {
        prev[i] = m.from_before() ? carried[carried_at(s, d, step_rows.before, b, k, unit)]
                  : m.from_initial()
                      ? load_carried<Scalar>(p.states.initial[i], p.states.wide, state)
                      : A(Cell::template kInitial<i>);
      }
      if constexpr ((Cell::kBackwardNext >> i & 1) != 0)
        next[i] = given<i>(p, row_of(s, d, step_rows.now, b), unit,
                           carried[carried_at(s, d, step_rows.now, b, k, unit)]);
      grad_next[i] = m.ends() && p.states.grad_last[i] ? Array<Scalar>(p.states.grad_last[i])[state]
                                                       : Array<A>(p.grad_carried[i])[state];
    });
    for_each<P>(
        [&](auto k) { params_sum[k] = Array<A>(p.grad_params)[params_at(p, d, b, k, unit)]; });
    grad_ = p.grad_full ? Raw(p.grad_full)[state] : Raw(p.grad_output)[here];
    grad_next[0] = 0;
    if (!p.grad_full && m.ends()) grad_next[0] = Array<Scalar>(p.states.grad_last[0])[state];
  }

  // What is rarely there, and so waited for only there: after load(), before compute().
  FASTRNN_HD void load_grad_sequences(const BackwardStep& p, const StepRows& step_rows, int d,
                                      int b, int unit) {
    for_each<kCarried>([&](auto k) {
      if (p.states.grad_sequence[k + 1])
        grad_next[k + 1] += Array<Scalar>(
            p.states.grad_sequence[k + 1])[output_at(p.shape, d, step_rows.now, b, unit)];
    });
  }

  // product: (grad_h_gates W_hh) of the step after, masked, or 0 where there is none or grad_full
  // has it. params are the caller's to load.
  FASTRNN_HD void compute(const BackwardStep& p, int d, int b, int unit, A product) {
    A kept[Cell::kStates];
    collect(p, d, b, unit, product, kept);
    run(p, d, b, unit, kept);
  }

  // The first part of compute(): grad_next, all that reaches the states which the cell gave; `kept`
  // is what zoneout takes past the cell.
  FASTRNN_HD void collect(const BackwardStep& p, int d, int b, int unit, A product, A* kept) {
    prev[0] = Storage<Scalar>::widen(h_prev_);
    if constexpr (!Cell::kRecurrent) prev[0] = masked<Scalar>(p, d, b, unit, prev[0]);
    next[0] = kZones && p.given ? given_h_ : Storage<Scalar>::widen(h_next_);
    grad_next[0] += Storage<Scalar>::widen(grad_);
    grad_next[0] += product + direct;
    if (is_zoned(p)) {
      A keep[2];
      load_zones(p, d, b, unit, keep);
      for_each<Cell::kStates>([&](auto k) {
        kept[k] = keep[k > 0] * grad_next[k];
        grad_next[k] -= kept[k];
      });
    }
  }

  // The rest of compute().
  FASTRNN_HD void run(const BackwardStep& p, int d, int b, int unit, const A* kept) {
    A saved[Cell::kSaved + 1], scalars[Cell::kScalars + 1];
    load_scalars<Cell>(p, scalars);
    for (int k = 0; k < Cell::kSaved; ++k) saved[k] = saved_value(k);
    Rounded<Cell, Scalar>::backward(saved, In<A>{nullptr, nullptr, prev, params, scalars}, next,
                                    grad_next, grad_x, grad_h, grad_prev, grad_params);
    if constexpr (!Cell::kRecurrent) grad_prev[0] = masked<Scalar>(p, d, b, unit, grad_prev[0]);
    if (is_zoned(p)) for_each<Cell::kStates>([&](auto k) { grad_prev[k] += kept[k]; });
  }

  FASTRNN_HD A saved_value(int k) const { return Storage<Scalar>::widen(saved_[k]); }

  FASTRNN_HD void save(const BackwardStep& p, const StepRows& step_rows, Moment m, int d, int b,
                       int unit) const {
    const Shape& s = p.shape;
    const Place state = state_at(s, d, b, unit);
    const Place gates = many_at(s, d, step_rows.now, b, Cell::kGates, unit);
    Scalar* const of_x = gates.in(static_cast<Scalar*>(p.grad_x_gates));
    Scalar* const of_h =
        Cell::kSharedGateGrad ? nullptr : gates.in(static_cast<Scalar*>(p.grad_h_gates));
    const int hidden = static_cast<int>(s.hidden);
    for (int g = 0; g < Cell::kGates; ++g) {
      store<Scalar>(of_x, int64_t{hidden} * g, grad_x[g]);
      if (!Cell::kSharedGateGrad) store<Scalar>(of_h, int64_t{hidden} * g, grad_h[g]);
    }
    if (has_direct(p)) store<A>(p.direct, state, grad_prev[0]);
    // Zero where the state before was none of the step before's, nor an initial one.
    for_each<kCarried>([&](auto k) {
      store<A>(p.grad_carried[k + 1], state, m.from_zero() ? A(0) : grad_prev[k + 1]);
    });
    for_each<P>([&](auto k) {
      store<A>(p.grad_params, params_at(p, d, b, k, unit), params_sum[k] + grad_params[k]);
    });
  }

  // In the place of compute() and save() for a row that has left its first step.
  FASTRNN_HD void leave(const BackwardStep& p, int d, int b, int unit, A product) const {
    store<Scalar>(p.states.grad_initial[0], state_at(p.shape, d, b, unit), product + direct);
  }

 private:
  Scalar saved_[Cell::kSaved + 1], h_prev_, h_next_, grad_;
  A given_h_;  // with zoneout, where it is read: h after the step as the cell gave it

  static FASTRNN_HD bool is_zoned(const BackwardStep& p) { return kZones && p.zoneout.on; }
  static FASTRNN_HD bool has_direct(const BackwardStep& p) {
    return Cell::kDirectGrad || is_zoned(p);
  }
  // A state after the step as the cell gave it: `after`, or with zoneout what forward kept.
  template <int state>
  static FASTRNN_HD A given(const BackwardStep& p, int row, int unit, A after) {
    if (!kZones || !p.given) return after;
    return Array<A>(p.given)[given_at<Cell, state>(row, p.shape.hidden, unit)];
  }
  static FASTRNN_HD Place carried_at(const Shape& s, int d, const Rows& rows, int b, int k,
                                     int unit) {
    return many_at(s, d, rows, b, kCarried, k * static_cast<int>(s.hidden) + unit);
  }
  static FASTRNN_HD Place params_at(const BackwardStep& p, int d, int b, int k, int unit) {
    const int hidden = static_cast<int>(p.shape.hidden);
    return {d * static_cast<int>(p.shape.batch) + b, P * hidden, k * hidden + unit};
  }
};

}  // namespace fastrnn::cuda
