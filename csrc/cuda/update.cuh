// What a thread does for one hidden unit of one batch row, once the recurrent product is known. All
// kernels share these: load() fetches everything that does not depend on the product (before the
// product where that hides its latency), compute() takes the product, save() writes the results.
#pragma once

#include "../cells/cell.h"
#include "dtype.cuh"
#include "params.h"

namespace fastrnn::cuda {

template <class Cell, class Scalar>
struct ForwardUpdate {
  using A = Accumulate<Scalar>;
  A x[Cell::kGates], h_bias[Cell::kGates], prev[Cell::kStates];
  A next[Cell::kStates], saved[Cell::kSaved + 1];

  FASTRNN_HD void load(const ForwardStep& p, const Tick& tick, Moment m, int d, int64_t b,
                       int64_t unit) {
    load_gates(p, tick, d, b, unit);
    load_states(p, tick, m, d, b, unit);
    for (int g = 0; g < Cell::kGates; ++g) {
      h_bias[g] = 0;
      if (p.b_ih[d]) {
        x[g] += Array<Scalar>(p.b_ih[d])[g * p.shape.hidden + unit];
        h_bias[g] = Array<Scalar>(p.b_hh[d])[g * p.shape.hidden + unit];
      }
    }
  }

  // x still lacks its bias, and h_bias is not set.
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
    for (int k = 0; k < Cell::kStates; ++k) prev[k] = 0;
    if (m.from_zero()) return;
    const bool starts = m.from_initial();
    if (s.recurrent == s.hidden) {  // else h is projected, and no cell can use it unit by unit
      prev[0] = starts
                    ? Array<Scalar>(p.h0)[(d * s.batch + b) * s.hidden + unit]
                    : Array<Scalar>(p.output)[(tick.before.offset + b) * s.directions * s.hidden +
                                              d * s.hidden + unit];
    }
    if constexpr (Cell::kStates == 2) {
      prev[1] = starts ? load_c<Scalar>(p.c0, p.wide_c, (d * s.batch + b) * s.hidden + unit)
                       : Array<A>(p.cell)[cell_row(p, d, tick.before, b) * s.hidden + unit];
    }
  }

  FASTRNN_HD void compute(const A* product) {
    A h[Cell::kGates];
    for (int g = 0; g < Cell::kGates; ++g) h[g] = product[g] + h_bias[g];
    Cell::forward(x, h, prev, next, saved);
  }

  FASTRNN_HD void save(const ForwardStep& p, const Tick& tick, Moment m, int d, int64_t b,
                       int64_t unit) const {
    const Shape& s = p.shape;
    const int64_t row = tick.now.offset + b, state = (d * s.batch + b) * s.hidden + unit;
    store<Scalar>(p.h[d], row * p.h_stride + unit, next[0]);
    if (m.ends() && p.hn) store<Scalar>(p.hn, state, next[0]);
    if constexpr (Cell::kStates == 2) {
      store<A>(p.cell, cell_row(p, d, tick.now, b) * s.hidden + unit, next[1]);
      if (m.ends()) store_c<Scalar>(p.cn, p.wide_c, state, next[1]);
      if (p.cell_output)
        store<Scalar>(p.cell_output, (row * s.directions + d) * s.hidden + unit, next[1]);
    }
    if (p.saved) {
      for (int k = 0; k < Cell::kSaved; ++k) {
        const int64_t at = ((d * s.total + row) * Cell::kSaved + k) * s.hidden + unit;
        store<Scalar>(p.saved, at, saved[k]);
      }
    }
  }

 private:
  static FASTRNN_HD int64_t cell_row(const ForwardStep& p, int d, const Rows& rows, int64_t b) {
    return d * p.cell_rows + (p.cell_rows == p.shape.total ? rows.offset + b : b);
  }
};

template <class Cell, class Scalar>
struct BackwardUpdate {
  using A = Accumulate<Scalar>;
  A saved[Cell::kSaved + 1], prev[Cell::kStates], next[Cell::kStates], grad_next[Cell::kStates];
  A direct;
  A grad_x[Cell::kGates], grad_h[Cell::kGates], grad_prev[Cell::kStates];

  // The row has this step, or has just left its first one, and its gradient goes out to h0.
  FASTRNN_HD void load(const BackwardStep& p, const Tick& tick, Moment m, int d, int64_t b,
                       int64_t unit) {
    const Shape& s = p.shape;
    const int64_t state = (d * s.batch + b) * s.hidden + unit;
    direct = Cell::kDirectGrad && m.carried() ? Array<A>(p.direct)[state] : A(0);
    if (!m.has()) return;

    const int64_t row = tick.now.offset + b, before = tick.before.offset + b;
    const int64_t width = s.directions * s.hidden, column = d * s.hidden + unit;
    for (int k = 0; k < Cell::kSaved; ++k) {
      saved[k] = Array<Scalar>(p.saved)[((d * s.total + row) * Cell::kSaved + k) * s.hidden + unit];
    }
    if constexpr ((Cell::kBackwardPrev & kStateH) != 0) {
      prev[0] = m.from_before()    ? Array<Scalar>(p.output)[before * width + column]
                : m.from_initial() ? Array<Scalar>(p.h0)[state]
                                   : A(0);
    }
    if constexpr ((Cell::kBackwardNext & kStateH) != 0) {
      next[0] = Array<Scalar>(p.output)[row * width + column];
    }
    if constexpr ((Cell::kBackwardPrev & kStateC) != 0) {
      prev[1] = m.from_before()    ? Array<A>(p.cell)[(d * s.total + before) * s.hidden + unit]
                : m.from_initial() ? load_c<Scalar>(p.c0, p.wide_c, state)
                                   : A(0);
    }
    if constexpr ((Cell::kBackwardNext & kStateC) != 0) {
      next[1] = Array<A>(p.cell)[(d * s.total + row) * s.hidden + unit];
    }
    grad_next[0] = p.grad_full ? Array<Scalar>(p.grad_full)[state]
                               : Array<Scalar>(p.grad_output)[row * width + column];
    if (!p.grad_full && m.ends()) grad_next[0] += Array<Scalar>(p.grad_hn)[state];
    if constexpr (Cell::kStates == 2) {
      grad_next[1] =
          m.ends() && p.grad_cn ? Array<Scalar>(p.grad_cn)[state] : Array<A>(p.grad_cell)[state];
    }
  }

  // What is rarely there, and so waited for only there: after load(), before compute().
  FASTRNN_HD void load_grad_cell_output(const BackwardStep& p, const Tick& tick, int d, int64_t b,
                                        int64_t unit) {
    if constexpr (Cell::kStates == 2) {
      const int64_t at = ((tick.now.offset + b) * p.shape.directions + d) * p.shape.hidden + unit;
      if (p.grad_cell_output) grad_next[1] += Array<Scalar>(p.grad_cell_output)[at];
    }
  }

  // product: (grad_h_gates W_hh) of the step after, or 0 where there is none or grad_full has it.
  FASTRNN_HD void compute(A product) {
    grad_next[0] += product + direct;
    Cell::backward(saved, prev, next, grad_next, grad_x, grad_h, grad_prev);
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
    if (Cell::kDirectGrad) store<A>(p.direct, state, grad_prev[0]);
    // Zero where the state before was none of the step before's, nor c0.
    if constexpr (Cell::kStates == 2)
      store<A>(p.grad_cell, state, m.from_zero() ? A(0) : grad_prev[1]);
  }

  // In the place of compute() and save() for a row that has left its first step.
  FASTRNN_HD void leave(const BackwardStep& p, int d, int64_t b, int64_t unit, A product) const {
    store<Scalar>(p.grad_h0, (d * p.shape.batch + b) * p.shape.hidden + unit, product + direct);
  }
};

}  // namespace fastrnn::cuda
