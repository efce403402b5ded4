// Backward of cells that normalise their rows. Through a norm, v to u = (v - mean) / deviation,
// grad v = (grad u - mean(grad u) - u mean(grad u * u)) / deviation, the means over the row: the
// cell gradients of a whole row come first, then those of the products.
#pragma once

#include "backward.h"
#include "zoneout.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// What the gradient of a norm needs of a row: sums over it of grad u and of grad u * u.
template <class V, class A>
struct NormSums {
  V plain, by_unit;

  FASTRNN_HD NormSums() : plain(A(0)), by_unit(A(0)) {}
  FASTRNN_HD void add(V grad, V unit) {
    plain = plain + grad;
    by_unit = multiply_add(grad, unit, by_unit);
  }
};
template <class V, class A>
struct NormGradient {
  V plain, by_unit, inverse;

  FASTRNN_HD NormGradient(const NormSums<V, A>& sums, A count, A inverse)
      : plain(sum_of_lanes(sums.plain) / count),
        by_unit(sum_of_lanes(sums.by_unit) / count),
        inverse(inverse) {}
  FASTRNN_HD V operator()(V grad, V unit) const {
    return (grad - plain - unit * by_unit) * inverse;
  }
};

template <class Op>
void Backward<Op>::pack_gains(int d, Range blocks) {
  for_units({0, gate_gains}, units, blocks, [&](int64_t gate, int64_t j) {
    const int gates = gate_gains / 2;
    const S* const gain = (const S*)p.weights[d].params[gate / gates] + gate % gates * s.H;
    load(gain + j, s.H - j).store(scratch[d].gains + gate * units.padded() + j);
  });
}

// What comes to the h of all rows through a product, in l.products.
template <class Op>
void Backward<Op>::products_of_rows(const Lane& l, int64_t e, Range both, Range ending) {
  const auto products = [&](int64_t b) {
    return l.products + (b - l.batch.begin) * units.padded();
  };
  sweep(l.blocks, e, [&](int64_t block, int64_t next) {
    const int64_t j = units.unit(block, 0), width = units.vecs(block) * W;
    const auto multiply_rows = [&](Range rows) {
      for_row_groups(rows.begin, rows.end, row_limit<Op>(units.vecs(block)),
                     [&](int64_t b, int count) {
                       A tile[kTile] __attribute__((aligned(64)));
                       product_of(l, b, count, block, next, tile);
                       for (int r = 0; r < count; ++r) {
                         __builtin_memcpy(products(b + r) + j, tile + r * width, width * sizeof(A));
                       }
                     });
    };
    multiply_rows(both);
    if (projected) return multiply_rows(ending);
    for (int64_t b = ending.begin; b < ending.end; ++b)
      __builtin_memset(products(b) + j, 0, width * sizeof(A));
  });
}

// Step e of the rows that have one: all products, then row by row.
template <class Op>
template <class Cell>
void Backward<Op>::step_rows(const Lane& l, int64_t e, Range both, Range ending) {
  products_of_rows(l, e, both, ending);
  const int64_t t = l.schedule.step(e), padded = units.padded();
  // Over the rows of a step first, unless there is only one: shorter sums, smaller error.
  const int64_t count = parts * padded;
  A* const whole = p.grad_units ? sums_of(l.d).of(l.slice) : nullptr;
  const bool apart = !whole || both.size() + ending.size() > 1;
  if (apart) __builtin_memset(l.sums, 0, count * sizeof(A));
  const auto update_rows = [&](Range rows) {
    for (int64_t b = rows.begin; b < rows.end; ++b)
      update_row<Cell>(l, t, b, l.products + (b - l.batch.begin) * padded, apart ? l.sums : whole);
  };
  update_rows(both);
  update_rows(ending);
  for (int64_t i = 0; whole && apart && i < count; i += W)
    (V::load(whole + i) + V::load(l.sums + i)).store(whole + i);
}

// As update(), for all units of a row; `product` is what came to its h through a product, and
// `sums` those of a step.
template <class Op>
template <class Cell>
void Backward<Op>::update_row(const Lane& l, int64_t t, int64_t b, const A* product, A* sums) {
  constexpr int G = Cell::kGates, K = Cell::kSaved, kStates = Cell::kStates;
  constexpr int P = Cell::kParams - Cell::kGains, kCarried = Cell::kCarried;
  constexpr int F = place_among(Cell::kBackwardNext, kMostStates), kKept = kSavedWithNorms<Cell>;
  constexpr bool kEmits = Cell::kNorms == 3;
  const Scratch& m = scratch[l.d];
  const int64_t H = s.H, padded = units.padded(), at = b * padded, row = l.schedule.row(t, b);
  const int64_t before = l.schedule.previous(t), state = l.schedule.state(b);
  const bool has_h = !projected, cut = l.schedule.cut(t, b);
  const bool follows = !cut && !l.schedule.first(t, b);
  const S* const gates = (const S*)p.gates + row * kKept * H;
  const A* const statistics = (const A*)p.statistics + row * Cell::kStatistics;
  // As in update(); of states besides h there is one at most.
  const S* const h0 = (const S*)p.states.initial[0] + state * s.R;
  const S* const h_before = cut ? nullptr : follows ? in_output(p.output, l, before, b) : h0;
  const S* const c0 = cut || kCarried == 0 ? nullptr : (const S*)p.states.initial[1] + state * H;
  const A* const c = p.states.carried ? (const A*)p.states.carried + row * H : nullptr;
  const A* const c_before = c && follows ? c + (l.schedule.row(before, b) - row) * H : nullptr;
  const A* const given = p.given ? (const A*)p.given + row * F * H : c;
  const S* const grad_sequence =
      kCarried > 0 && p.states.grad_sequence[1]
          ? (const S*)p.states.grad_sequence[1] + l.schedule.outer_part(t, b) * H
          : nullptr;
  A *const grad_h_sum = has_h ? m.grad_h + at : nullptr, *const grad_c_sum = m.grad_carried + at;
  const S* const grad_output = in_output(p.grad_output, l, t, b);
  S* const out = grad_gates(l, t, b);
  A* const grads = l.grads;
  const bool zoned = p.zoneout.on;
  const Zones<V, A> zones(p.zoneout, l.schedule, t, b);
  const auto add = [&](int64_t part, int64_t j, V value) {
    A* const to = sums + part * padded + j;
    (V::load(to) + value).store(to);
  };
  // What reaches h of the cell, without what zoneout takes past it.
  const auto grad_of_h = [&](int64_t j, V* past) {
    V grad = V::load(product + j), keep[2];
    if (has_h) grad = grad + V::load(grad_h_sum + j) + load(grad_output + j, H - j);
    *past = V(A(0));
    if (!zoned) return grad;
    zones.load(j, keep);
    *past = keep[0] * grad;
    return grad - *past;
  };
  constexpr int kOfParams = kSums<Cell> - P;
  const A* const values = m.params;

  NormSums<V, A> of_state;
  if constexpr (kEmits) {
    const V mean(statistics[2]), inverse(statistics[3]);
    for_lanes<V>(H, [&](int64_t j, const auto& lanes) {
      V params[P], grad_params[P], grad_given, grad_unit, past;
      for_each<P>([&](auto k) { params[k] = V::load(values + k * padded + j); });
      const V grad_h = grad_of_h(j, &past);
      if (has_h) past.store(grad_h_sum + j);
      const V unit = (V(load(given + j, H - j)) - mean) * inverse;
      Cell::emit_backward(load(gates + (K - 1) * H + j, H - j), unit, params, grad_h, &grad_given,
                          &grad_unit, grad_params);
      for_each<P>([&](auto k) { add(kOfParams + k, j, grad_params[k]); });
      grad_unit = lanes(grad_unit);
      of_state.add(grad_unit, unit);
      grad_given.store(grads + j);
      grad_unit.store(grads + padded + j);
    });
  }
  const A count = A(G * H);
  NormSums<V, A> of_x, of_h;
  const NormGradient<V, A> to_state(of_state, A(H), kEmits ? statistics[3] : A(0));
  for_lanes<V>(H, [&](int64_t j, const auto& lanes) {
    const int64_t valid = H - j;
    V saved[K], prev[kStates], next[kStates], grad_next[kStates], grad_prev[kStates];
    V grad_x[G], grad_h[G], past[2], keep[2];
    for_each<K>([&](auto k) { saved[k] = load(gates + k * H + j, valid); });
    if constexpr (kEmits) {
      grad_next[0] = V::load(grads + j);
    } else {
      grad_next[0] = grad_of_h(j, past);
      prev[0] = h_before ? load(h_before + j, valid) : V(A(0));
    }
    if constexpr (kCarried > 0) {
      prev[1] = c_before ? V(load(c_before + j, valid))
                : c0     ? load(c0 + j, valid)
                         : V(A(Cell::template kInitial<1>));
      next[1] = V(load(given + j, valid));
      grad_next[1] = V::load(grad_c_sum + j);
      if (grad_sequence) grad_next[1] = grad_next[1] + load(grad_sequence + j, valid);
      if (zoned) {
        zones.load(j, keep);
        past[1] = keep[1] * grad_next[1];
        grad_next[1] = grad_next[1] - past[1];
      }
    }
    if constexpr (kEmits) {
      const V unit = (next[1] - V(statistics[2])) * V(statistics[3]);
      grad_next[1] = grad_next[1] + to_state(V::load(grads + padded + j), unit);
    }
    Cell::backward(saved, In<V>{nullptr, nullptr, prev, nullptr, nullptr}, next, grad_next, grad_x,
                   grad_h, grad_prev, (V*)nullptr);
    if (!kEmits && has_h) (zoned ? grad_prev[0] + past[0] : grad_prev[0]).store(grad_h_sum + j);
    if constexpr (kCarried > 0)
      (zoned ? grad_prev[1] + past[1] : grad_prev[1]).store(grad_c_sum + j);
    for_each<G>([&](auto g) {
      const V x = load(gates + (K + g) * H + j, valid),
              h = load(gates + (K + G + g) * H + j, valid);
      add(g, j, grad_x[g]);
      add(G + g, j, grad_h[g]);
      add(2 * G + g, j, grad_x[g] * x);
      add(3 * G + g, j, grad_h[g] * h);
      const V to_x = lanes(grad_x[g] * V::load(m.gains + g * padded + j));
      const V to_h = lanes(grad_h[g] * V::load(m.gains + (G + g) * padded + j));
      of_x.add(to_x, x);
      of_h.add(to_h, h);
      to_x.store(grads + g * padded + j);
      to_h.store(grads + (G + g) * padded + j);
    });
  });
  const NormGradient<V, A> to_x(of_x, count, statistics[0]), to_h(of_h, count, statistics[1]);
  for (int64_t j = 0; j < H; j += W) {
    for_each<G>([&](auto g) {
      const int64_t gate = g * H + j, valid = H - j;
      const V x = load(gates + K * H + gate, valid), h = load(gates + (K + G) * H + gate, valid);
      store(out + gate, to_x(V::load(grads + g * padded + j), x), valid);
      store(out + depth + gate, to_h(V::load(grads + (G + g) * padded + j), h), valid);
    });
  }
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
