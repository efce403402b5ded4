// What backward does between its recurrent products: the units of a row, the projection;
// and the states at both ends.
#pragma once

#include "backward.h"
#include "zoneout.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <class Op>
template <class Cell>
void Backward<Op>::update(const Lane& l, int64_t t, int64_t b, int64_t block, const A* h_tile,
                          typename Sums::template Step<kSums<Cell>>& sums) {
  constexpr int G = Cell::kGates, K = Cell::kSaved, kStates = Cell::kStates;
  constexpr int P = Cell::kParams - Cell::kGains, kCarried = Cell::kCarried;
  constexpr int E = kCopies<Cell>, F = place_among(Cell::kBackwardNext, kMostStates);
  constexpr bool kRecurrent = Cell::kRecurrent;
  const Scratch& m = scratch[l.d];
  const int n = units.vecs(block);
  const int64_t H = s.H, at = b * units.padded(), row = l.schedule.row(t, b);
  const int64_t before = l.schedule.previous(t), state = l.schedule.state(b);
  const bool has_h = !projected, cut = l.schedule.cut(t, b);
  const bool follows = !cut && !l.schedule.first(t, b);
  // Where the row's values begin, in locals: for all the compiler knows, the stores below change
  // members. Null where a state is not one of these.
  const S* const gates = (const S*)p.gates + row * K * H;
  const S* const h = in_output(p.output, l, t, b);
  const S* const h0 = (const S*)p.states.initial[0] + state * s.R;
  const S* const h_before = cut ? nullptr : follows ? in_output(p.output, l, before, b) : h0;
  const S* initial[kStates];
  for_each<kCarried>([&](auto k) {
    initial[k + 1] = cut ? nullptr : (const S*)p.states.initial[k + 1] + state * H;
  });
  const A* const carried =
      p.states.carried ? (const A*)p.states.carried + row * kCarried * H : nullptr;
  const A* const carried_before =
      carried && follows ? carried + (l.schedule.row(before, b) - row) * kCarried * H : nullptr;
  const bool sequences = kCarried > 0 && p.states.grad_sequence[kCarried];
  const int64_t outer = l.schedule.outer_part(t, b) * H;
  const int64_t apart = s.B * units.padded(), padded = units.padded();
  A* const grad_h_sum = has_h ? m.grad_h + at : nullptr;
  A* const grad_sums = m.grad_carried + at;
  const A* const values = m.params;
  const S* const grad_output = in_output(p.grad_output, l, t, b);
  S* const out = grad_gates(l, t, b);
  const S* const mask = kRecurrent ? nullptr : mask_of(l, b);
  const A* const given = p.given ? (const A*)p.given + row * F * H : nullptr;
  const bool zoned = p.zoneout.on;
  const Zones<V, A> zones(p.zoneout, l.schedule, t, b);
  for (int u = 0; u < n; ++u) {
    const int64_t j = units.unit(block, u), valid = H - j;
    V saved[K > 0 ? K : 1], prev[kStates], next[kStates], grad_next[kStates], grad_prev[kStates];
    V grad_x[G], grad_h[G], params[P > 0 ? P : 1], grad_params[P > 0 ? P : 1];
    V scalars[kMostScalars];
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) saved[k] = load(gates + k * H + j, valid);
    if (Cell::kBackwardPrev & kStateH) prev[0] = h_before ? load(h_before + j, valid) : V(0);
    if (!kRecurrent && mask) prev[0] = prev[0] * load(mask + j, valid);
    if constexpr (Cell::kBackwardNext & kStateH) {
      next[0] = given ? V(load(given + j, valid)) : load(h + j, valid);
    }
    grad_next[0] = V::load(h_tile + u * W);
    if (has_h) grad_next[0] = grad_next[0] + V::load(grad_h_sum + j) + load(grad_output + j, valid);
    for_each<kCarried>([&](auto k) {
      constexpr int i = k + 1;
      if constexpr (Cell::kBackwardPrev >> i & 1) {
        prev[i] = carried_before ? V(load(carried_before + k * H + j, valid))
                  : initial[i]   ? load(initial[i] + j, valid)
                                 : V(A(Cell::template kInitial<i>));
      }
      if constexpr (Cell::kBackwardNext >> i & 1) {
        constexpr int place = place_among(Cell::kBackwardNext, i);
        next[i] = V(load((given ? given + place * H : carried + k * H) + j, valid));
      }
      grad_next[i] = V::load(grad_sums + k * apart + j);
      if (sequences) {
        const S* const grad = (const S*)p.states.grad_sequence[i] + outer;
        grad_next[i] = grad_next[i] + load(grad + j, valid);
      }
    });
    for_each<P>([&](auto k) { params[k] = V::load(values + k * padded + j); });
    for_each<Cell::kScalars>([&](auto k) { scalars[k] = V(A(p.scalars[k])); });
    V keep[2], kept[kStates];
    if (zoned) {
      zones.load(j, keep);
      for_each<kStates>([&](auto k) {
        kept[k] = keep[k > 0] * grad_next[k];
        grad_next[k] = grad_next[k] - kept[k];
      });
    }
    Cell::backward(saved, In<V>{nullptr, nullptr, prev, params, scalars}, next, grad_next, grad_x,
                   grad_h, grad_prev, grad_params);
    if (!kRecurrent && mask) grad_prev[0] = grad_prev[0] * load(mask + j, valid);
    if (zoned) for_each<kStates>([&](auto k) { grad_prev[k] = grad_prev[k] + kept[k]; });
    if (has_h) grad_prev[0].store(grad_h_sum + j);
    for_each<kCarried>([&](auto k) { grad_prev[k + 1].store(grad_sums + k * apart + j); });
    for_each<P>([&](auto k) { sums.add(E * G + k, u, grad_params[k]); });
#pragma GCC unroll 8
    for (int g = 0; g < E * G; ++g) {
      const V grad = g < G ? grad_x[g] : grad_h[g - G];
      store(out + g * H + j, grad, valid);
      sums.add(g, u, grad);
    }
  }
}

template <class Op>
void Backward<Op>::unproject(const Lane& l, int64_t e, Range both, Range ending) {
  const int64_t t = l.schedule.step(e);
  sweep(l.outs, e, [&](int64_t block, int64_t next) {
    const int vecs = outs.vecs(block);
    const auto add = [&](int64_t b, int v, V from_later) {
      const int64_t j = outs.unit(block, v);
      const V grad = load(in_output(p.grad_output, l, t, b) + j, s.R - j) + from_later;
      store(grad_h_row(l, t, b) + j, grad, s.R - j);
    };
    for_row_groups(both.begin, both.end, row_limit<Op>(vecs), [&](int64_t b, int count) {
      A tile[kTile] __attribute__((aligned(64)));
      recurrent_product(l, b, count, block, next, tile);
      for (int r = 0; r < count; ++r) {
        for (int v = 0; v < vecs; ++v) add(b + r, v, V::load(tile + (r * vecs + v) * W));
      }
    });
    for (int64_t b = ending.begin; b < ending.end; ++b) {
      const S* grad_hn = (const S*)p.states.grad_last[0] + l.schedule.state(b) * s.R;
      for (int v = 0; v < vecs; ++v) {
        const int64_t j = outs.unit(block, v);
        add(b, v, load(grad_hn + j, s.R - j));
      }
    }
  });
}

template <class Op>
void Backward<Op>::arrive(const Lane& l, int64_t after, Range batch) {
  if (!p.states.grad_initial[0]) return;
  const int64_t end = smaller(batch.end, l.schedule.rows(after));
  sweep(l.outs, 0, [&](int64_t block, int64_t next) {
    const int vecs = outs.vecs(block);
    for_row_groups(batch.begin, end, row_limit<Op>(vecs), [&](int64_t b, int count) {
      A tile[kTile] __attribute__((aligned(64)));
      recurrent_product(l, b, count, block, next, tile);
      for (int r = 0; r < count; ++r) {
        for (int v = 0; v < vecs; ++v) {
          const int64_t j = outs.unit(block, v), at = (b + r) * units.padded() + j;
          V grad = V::load(tile + (r * vecs + v) * W);
          if (!projected) grad = grad + V::load(scratch[l.d].grad_h + at);
          store((S*)p.states.grad_initial[0] + l.schedule.state(b + r) * s.R + j, grad, s.R - j);
        }
      }
    });
  });
}

template <class Op>
void Backward<Op>::load_states(const Lane& l) {
  for_units(l.batch, units, l.blocks, [&](int64_t b, int64_t j) {
    const int64_t state = l.schedule.state(b);
    if (!projected) {
      load((const S*)p.states.grad_last[0] + state * s.R + j, s.H - j)
          .store(scratch[l.d].grad_h + b * units.padded() + j);
    }
    for (int k = 0; k < carried_states; ++k) {
      load((const S*)p.states.grad_last[k + 1] + state * s.H + j, s.H - j)
          .store(grad_carried(l.d, k, b) + j);
    }
  });
  if (p.grad_units) sums_of(l.d).clear(l.slice, l.blocks);
}

template <class Op>
void Backward<Op>::store_states(const Lane& l) {
  for (int k = 0; k < carried_states && p.states.grad_initial[k + 1]; ++k) {
    S* const to = (S*)p.states.grad_initial[k + 1];
    for_units(l.batch, units, l.blocks, [&](int64_t b, int64_t j) {
      store(to + l.schedule.state(b) * s.H + j, V::load(grad_carried(l.d, k, b) + j), s.H - j);
    });
  }
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
