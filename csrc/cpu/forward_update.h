// What forward does once pre-activations are there: the units of a row, the projection; and with
// states: the mask, both ends.
#pragma once

#include "forward.h"
#include "zoneout.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <class Op>
template <class Cell>
void Forward<Op>::update(const Lane& l, int64_t t, int64_t b, int64_t block, const S* h_row,
                         const A* x_tile, const A* h_tile) {
  constexpr int G = Cell::kGates, K = Cell::kSaved, kStates = Cell::kStates;
  constexpr int P = Cell::kParams - Cell::kGains, kCarried = Cell::kCarried;
  constexpr int F = place_among(Cell::kBackwardNext, kMostStates), kKept = kSavedWithNorms<Cell>;
  constexpr bool kRecurrent = Cell::kRecurrent, kEmits = Cell::kNorms == 3;
  const int n = units.vecs(block);
  const int64_t H = s.H, row = l.schedule.row(t, b);
  // Where the row's values begin, in locals: for all the compiler knows, the stores below change
  // members.
  const bool has_h = !projected;  // a projected h has another width; its cell does not read it
  S* const out = projected ? hidden_row(l, t, b) : output_row(l, t, b);
  A* const state = carried(l.d, 0, b);
  const A* const values = scratch[l.d].params;
  const int64_t apart = s.B * units.padded(), padded = units.padded();
  A* const kept = p.states.carried ? (A*)p.states.carried + row * kCarried * H : nullptr;
  S* const gates = K > 0 && p.gates ? (S*)p.gates + row * kKept * H : nullptr;
  const bool sequences = kCarried > 0 && p.states.sequence[kCarried];
  const int64_t outer = l.schedule.outer_part(t, b) * H;
  const S* const mask = kRecurrent ? nullptr : mask_of(l, b);
  A* const given = p.given ? (A*)p.given + row * F * H : nullptr;
  const bool zoned = p.zoneout.on;
  const Zones<V, A> zones(p.zoneout, l.schedule, t, b);
  for (int u = 0; u < n; ++u) {
    const int64_t j = units.unit(block, u), valid = H - j;
    V x[G], h[G], prev[kStates], next[kStates], saved[K > 0 ? K : 1];
    V params[P > 0 ? P : 1], scalars[kMostScalars];
#pragma GCC unroll 4
    for (int g = 0; g < G && !kEmits; ++g) {
      x[g] = V::load(x_tile + (g * n + u) * W);
      h[g] = V::load(h_tile + (g * n + u) * W);
    }
    const V before = has_h ? load(h_row + j, valid) : V(0);
    prev[0] = !kRecurrent && mask ? before * load(mask + j, valid) : before;
    for_each<kCarried>([&](auto k) { prev[k + 1] = V::load(state + k * apart + j); });
    for_each<P>([&](auto k) { params[k] = V::load(values + k * padded + j); });
    for_each<Cell::kScalars>([&](auto k) { scalars[k] = V(A(p.scalars[k])); });
    if constexpr (kEmits) {  // carry() has run the cell
      next[1] = V::load(l.state + j);
      const V unit = (next[1] - V(l.moments.mean)) * V(l.moments.inverse);
      next[0] = Cell::emit(V::load(l.emitting + j), unit, params);
    } else {
      Cell::forward(In<V>{x, h, prev, params, scalars}, next, saved);
    }
    if (zoned) {
      V keep[2];
      zones.load(j, keep);
      for_each<kStates>([&](auto k) {
        if constexpr (Cell::kBackwardNext >> k & 1) {
          constexpr int place = place_among(Cell::kBackwardNext, k);
          if (given) store(given + place * H + j, VecOf<A>(next[k]), valid);
        }
        const V kept = keep[k > 0];
        next[k] = kept * (k > 0 ? prev[k] : before) + (V(A(1)) - kept) * next[k];
      });
    }
    store(out + j, next[0], valid);
    for_each<kCarried>([&](auto k) {
      next[k + 1].store(state + k * apart + j);
      if (kept) store(kept + k * H + j, VecOf<A>(next[k + 1]), valid);
      if (sequences) store((S*)p.states.sequence[k + 1] + outer + j, next[k + 1], valid);
    });
    if constexpr (K > 0 && !kEmits) {
      if (!gates) continue;
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) store(gates + k * H + j, saved[k], valid);
    }
  }
}

template <class Op>
void Forward<Op>::project(Lane& l, int64_t e, Range batch) {
  const int64_t t = l.schedule.step(e);
  for (int64_t b = batch.begin; b < batch.end; ++b) {
    l.hidden.set(b - batch.begin, hidden_row(l, t, b));
  }
  sweep(l.outs, e, [&](int64_t block, int64_t next) {
    const int vecs = outs.vecs(block);
    for_row_groups(0, batch.size(), row_group(vecs), [&](int64_t row, int count) {
      A tile[kTile] __attribute__((aligned(64)));
      multiply_with(l.hidden, row, count, p.weights[l.d].w_hr, scratch[l.d].w_hr, outs, block, next,
                    zeros, tile);
      for (int r = 0; r < count; ++r) {
        for (int v = 0; v < vecs; ++v) {
          const int64_t j = outs.unit(block, v);
          store(output_row(l, t, batch.begin + row + r) + j, V::load(tile + (r * vecs + v) * W),
                s.R - j);
        }
      }
    });
  });
}

template <class Op>
auto Forward<Op>::masked(const Lane& l, int64_t b, const S* h) const -> const S* {
  S* const to = l.masked + (b - l.batch.begin) * s.R;
  const S* const mask = mask_of(l, b);
  for (int64_t j = 0; j < s.R; j += W) {
    store(to + j, load(h + j, s.R - j) * load(mask + j, s.R - j), s.R - j);
  }
  return to;
}

template <class Op>
void Forward<Op>::load_states(const Lane& l) {
  for (int k = 0; k < carried_states; ++k) {
    const S* const initial = (const S*)p.states.initial[k + 1];
    for_units(l.batch, units, l.blocks, [&](int64_t b, int64_t j) {
      load(initial + l.schedule.state(b) * s.H + j, s.H - j).store(carried(l.d, k, b) + j);
    });
  }
}

template <class Op>
void Forward<Op>::store_states(const Lane& l) {
  for (int k = 0; k < carried_states; ++k) {
    S* const last = (S*)p.states.last[k + 1];
    for_units(l.batch, units, l.blocks, [&](int64_t b, int64_t j) {
      store(last + l.schedule.state(b) * s.H + j, V::load(carried(l.d, k, b) + j), s.H - j);
    });
  }
  const Range columns = projected
                            ? Range{outs.unit(l.outs.begin, 0), outs.unit(l.outs.end, 0)}
                            : Range{units.unit(l.blocks.begin, 0), units.unit(l.blocks.end, 0)};
  for (int64_t b = l.batch.begin; b < l.batch.end; ++b) {
    const S* from = output_row(l, l.schedule.last(b), b);
    S* to = (S*)p.states.last[0] + l.schedule.state(b) * s.R;
    for (int64_t j = columns.begin; j < smaller(columns.end, s.R); ++j) to[j] = from[j];
  }
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
