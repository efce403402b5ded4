// Forward of cells that normalise their rows: the products of a whole row stand side by side before
// the cell sees them. Rows are never shared by threads.
#pragma once

#include "forward.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// out = `count` rows times the weights of all blocks.
template <class Op>
void Forward<Op>::products_of_rows(const Rows<Op>& rows, int64_t count, int64_t e, const void* w,
                                   Packed* panels, A* out) const {
  sweep({0, units.count}, e, [&](int64_t block, int64_t next) {
    for_row_groups(0, count, row_group(gates), [&](int64_t row, int some) {
      A tile[kTile] __attribute__((aligned(64)));
      multiply_with(rows, row, some, w, panels, units, block, next, zeros, tile);
      for (int r = 0; r < some; ++r) {
        __builtin_memcpy(out + (row + r) * row_width() + units.offset(block), tile + r * gates * W,
                         gates * W * sizeof(A));
      }
    });
  });
}

// Normalises the products of a row with x, side 0, or with h, side 1, in place.
template <class Op>
template <class Cell>
void Forward<Op>::normalise(const Lane& l, int64_t t, int64_t b, int side, A* row) const {
  constexpr int G = Cell::kGates;
  static_assert(widest_block(G) == 1);
  const Scratch& m = scratch[l.d];
  const int64_t H = s.H, at = l.schedule.row(t, b);
  const A *const gains = m.gains[side], *const bias = side ? m.b_hh : m.b_ih;
  S* const saved =
      p.gates ? (S*)p.gates + (at * kSavedWithNorms<Cell> + Cell::kSaved + side * G) * H : nullptr;
  const Moments<A> found = moments<V, G>(row, H);
  if (p.statistics) ((A*)p.statistics)[at * Cell::kStatistics + side] = found.inverse;
  const V mean(found.mean), inverse(found.inverse);
  for (int64_t j = 0; j < H; j += W) {
    for_each<G>([&](auto g) {
      const int64_t place = j * G + g * W;
      const V unit = (V::load(row + place) - mean) * inverse;
      if (saved) store(saved + g * H + j, unit, H - j);
      multiply_add(unit, V::load(gains + place), V::load(bias + place)).store(row + place);
    });
  }
}

// As recur(), for all blocks.
template <class Op>
template <class Cell>
void Forward<Op>::recur_rows(Lane& l, int64_t e, Range batch, int64_t x_row) {
  const int64_t t = l.schedule.step(e);
  products_of_rows(l.h, batch.size(), e, p.weights[l.d].w_hh, scratch[l.d].w_hh, l.h_gates);
  for (int64_t r = 0; r < batch.size(); ++r) {
    const int64_t b = batch.begin + r;
    A* const x = l.x_gates + (x_row + r) * row_width();
    A* const h = l.h_gates + r * row_width();
    normalise<Cell>(l, t, b, 0, x);
    normalise<Cell>(l, t, b, 1, h);
    if constexpr (Cell::kNorms == 3) carry<Cell>(l, t, b, x, h);
    const S* const h_row = s.operand_mask ? previous_h(l, t, b) : l.h.row[r];
    for (int64_t block = 0; block < units.count; ++block)
      update<Cell>(l, t, b, block, h_row, x + units.offset(block), h + units.offset(block));
  }
}

// The cell's step of a row up to the norm of its state 1.
template <class Op>
template <class Cell>
void Forward<Op>::carry(Lane& l, int64_t t, int64_t b, const A* x_row, const A* h_row) const {
  constexpr int G = Cell::kGates, K = Cell::kSaved, kStates = Cell::kStates;
  const int64_t H = s.H, row = l.schedule.row(t, b);
  const A* const before = carried(l.d, 0, b);
  S* const gates = p.gates ? (S*)p.gates + row * kSavedWithNorms<Cell> * H : nullptr;
  A *const emitting = l.emitting, *const state = l.state;
  for (int64_t j = 0; j < H; j += W) {
    V x[G], h[G], prev[kStates], next[kStates], saved[K];
    for_each<G>([&](auto g) {
      x[g] = V::load(x_row + j * G + g * W);
      h[g] = V::load(h_row + j * G + g * W);
    });
    prev[1] = V::load(before + j);
    Cell::forward(In<V>{x, h, prev, nullptr, nullptr}, next, saved);
    next[0].store(emitting + j);
    next[1].store(state + j);
    if (!gates) continue;
    for_each<K>([&](auto k) { store(gates + k * H + j, saved[k], H - j); });
  }
  l.moments = moments<V, 1>(state, H);
  if (!p.statistics) return;
  A* const statistics = (A*)p.statistics + row * Cell::kStatistics;
  statistics[2] = l.moments.mean;
  statistics[3] = l.moments.inverse;
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
