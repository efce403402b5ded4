// Forward of one layer over a whole sequence: a single parallel region around one time loop.
//
// A thread owns a slice of the batch and of the hidden units (plan.h). For a chunk of steps it
// first computes its own gate pre-activations from the input, which stay in its cache; then, step
// by step and block by block, the recurrent product of a few rows with all gates of some units, and
// at once their cell update. The previous h is read where it was written, in the output. With a
// projection a second product follows in each step. Without a recurrent product no unit reads
// another's state, and the threads do not wait for each other. Where rows are normalised, the
// products of a whole row come first (forward_norm.h).
#pragma once

#include "../cells/cell_info.h"
#include "layout.h"
#include "row_norm.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <class Op>
class Forward {
  using S = typename Op::Storage;
  using A = Accumulate<S>;
  using V = VecOf<S>;
  using Packed = typename Op::Packed;
  static constexpr int W = V::kWidth;
  static constexpr int kTile = Op::kMaxRows * kMaxVecs * W;

  struct Lane;

 public:
  // What differs between the cells: step() of one of them.
  using Step = void (Forward::*)(Lane& l, int64_t e, Range rows, int64_t x_row);

  Forward(const ForwardParams& params, Step step_of_cell, int threads)
      : p(params),
        s(params.shape),
        step_of_cell(step_of_cell),
        gates(kCells[s.cell].gates),
        carried_states(kCells[s.cell].states - 1),
        gains(kCells[s.cell].statistics > 0 ? 2 : 0),
        unit_params(kCells[s.cell].params - gains),
        recurrent(kCells[s.cell].recurrent),
        projected(s.R != s.H),
        packed(s.offsets[s.T] > pack_rows()),
        plan(plan_for<Op>(s, double(gates * s.H) * double(recurrent ? s.R : s.I), s.H, gates,
                          threads, gains > 0)),
        units(make_blocks<Op>(s.H, gates, plan.unit_slices)),
        outs(make_blocks<Op>(s.R, 1, plan.unit_slices)) {
    slice_rows = (s.B + plan.batch_slices - 1) / plan.batch_slices;
    const double input_bytes = double(gates) * double(s.H) * double(s.I) * sizeof(Packed);
    chunk_steps = chunk_length(s.T, slice_rows, input_bytes, plan);
    lay_out();
  }

  size_t workspace() const { return arena.used; }
  int threads() const { return plan.threads; }

  void prepare() { meetings.clear(); }

  void run(int thread) {
    pack(thread);
    meetings.of_all(thread).wait();
    for (int d = 0; d < s.D; ++d) {
      const Share share = share_of(plan, thread, d);
      if (share.active) run_direction(d, share, thread);
    }
    release_tiles<Op>();
  }

  // The step e of the rows that have one; `x_row` is the first of them in the chunk.
  template <class Cell>
  void step(Lane& l, int64_t e, Range rows, int64_t x_row) {
    static_assert(Cell::kGates <= kMaxVecs);
    if constexpr (Cell::kNorms > 0) return recur_rows<Cell>(l, e, rows, x_row);
    const int64_t t = l.schedule.step(e);
    sweep(l.blocks, e, [&](int64_t block, int64_t next) __attribute__((always_inline)) {
      recur<Cell>(l, t, rows, block, next, x_row);
    });
  }

 private:
  struct Scratch {
    Packed *w_ih, *w_hh, *w_hr;  // panels, block after block
    A *b_ih, *b_hh;              // in panel order, zeros without biases
    A* gains[2];                 // of x and h, in panel order
    A* params;                   // (unit_params, padded H)
    A* carried;                  // (states besides h, B, padded H)
    S* hidden;                   // (B, H): h before the projection, where it is not saved
  };

  // What a thread knows while it runs its part of a direction.
  struct Lane {
    int d;
    Schedule schedule;
    Range batch, blocks, outs;
    A* x_gates;
    S* masked;
    Barrier barrier;
    Rows<Op> x, h, hidden;  // of a chunk, of the step before, of this step before its projection
    // With norms: the products of all rows with h; (padded H) each, of one row what the cell left
    // for emit and its state 1.
    A *h_gates, *emitting, *state;
    Moments<A> moments;  // of that state
  };

  // Calls of at most so many rows do not pack the weights. Packing costs more where the weights are
  // in a farther cache, and gains more for pairs of 16-bit weights.
  int64_t pack_rows() const {
    constexpr int64_t kFewWeights = 1 << 16;
    if (Op::kDepth > 1) return 4;
    const int64_t weights = gates * s.H * (s.I + s.R);
    if (weights <= kFewWeights) return 1;
    return double(weights) * sizeof(Packed) <= kNearCache ? 24 : 48;
  }

  int64_t x_gates_size() const {
    const int64_t blocks = (units.count + plan.unit_slices - 1) / plan.unit_slices;
    return blocks * chunk_rows() * units.unit_vecs * gates * W;
  }
  int64_t chunk_rows() const { return chunk_steps * slice_rows; }

  void lay_out() {
    arena = Arena{(char*)p.workspace};
    meetings = Meetings(arena, plan);
    zeros = arena.template take<A>(kMaxVecs * W);
    zero_row = arena.template take<S>(s.resets ? s.R : 0);
    x_gates = arena.template take<A>(plan.threads * x_gates_size());
    norm_rows = arena.template take<A>(gains > 0 ? plan.threads * norm_rows_size() : 0);
    x_rows = RowStore<Op>(arena, plan.threads, chunk_rows(), s.I, packed);
    h_rows = RowStore<Op>(arena, plan.threads, slice_rows, s.R, packed);
    hidden_rows = RowStore<Op>(arena, plan.threads, projected ? slice_rows : 0, s.H, packed);
    masked_rows =
        arena.template take<S>(recurrent && s.operand_mask ? plan.threads * slice_rows * s.R : 0);
    const int64_t vectors = units.unit_vectors * gates, out_vectors = outs.unit_vectors;
    for (int d = 0; d < s.D; ++d) {
      Scratch& m = scratch[d];
      m.w_ih = arena.template take<Packed>(packed ? panel_size<Op>(s.I, vectors) : 0);
      m.w_hh = arena.template take<Packed>(recurrent && packed ? panel_size<Op>(s.R, vectors) : 0);
      m.w_hr =
          arena.template take<Packed>(packed && projected ? panel_size<Op>(s.H, out_vectors) : 0);
      m.b_ih = arena.template take<A>(vectors * W);
      m.b_hh = arena.template take<A>(vectors * W);
      for (A*& of_side : m.gains) of_side = arena.template take<A>(gains > 0 ? vectors * W : 0);
      m.params = arena.template take<A>(unit_params * units.padded());
      m.carried = arena.template take<A>(carried_states * s.B * units.padded());
      m.hidden = arena.template take<S>(projected && !p.hidden ? s.B * s.H : 0);
    }
  }

  void pack(int thread) {
    if (thread == 0) {
      for (int i = 0; i < kMaxVecs * W; ++i) zeros[i] = 0;
      if (s.resets) __builtin_memset(zero_row, 0, s.R * sizeof(S));
    }
    for (int d = 0; d < s.D; ++d) {
      const DirectionWeights& w = p.weights[d];
      const Scratch& m = scratch[d];
      const Range mine = part_of(units.count, plan.threads, thread);
      for (int64_t block = mine.begin; block < mine.end; ++block) {
        const Columns c = units.columns(block);
        pack_bias(w.b_ih, c, m.b_ih + units.offset(block));
        pack_bias(w.b_hh, c, m.b_hh + units.offset(block));
        for (int k = 0; k < gains; ++k) pack_bias(w.params[k], c, m.gains[k] + units.offset(block));
        pack_params<S>(w.params + gains, units, block, unit_params, m.params);
        if (!packed) continue;
        pack_panel<Op>((const S*)w.w_ih, s.I, 1, s.I, c, panel<Op>(m.w_ih, units, block, s.I));
        if (recurrent)
          pack_panel<Op>((const S*)w.w_hh, s.R, 1, s.R, c, panel<Op>(m.w_hh, units, block, s.R));
      }
      if (!packed || !projected) continue;
      const Range out = part_of(outs.count, plan.threads, thread);
      for (int64_t block = out.begin; block < out.end; ++block) {
        pack_panel<Op>((const S*)w.w_hr, s.H, 1, s.H, outs.columns(block),
                       panel<Op>(m.w_hr, outs, block, s.H));
      }
    }
  }

  static void pack_bias(const void* bias, const Columns& c, A* out) {
    for (int v = 0; v < c.vecs; ++v) {
      for (int lane = 0; lane < W; ++lane) {
        const bool there = bias && lane < c.valid[v];
        out[v * W + lane] = there ? widen(((const S*)bias)[c.first[v] + lane]) : A(0);
      }
    }
  }

  // As many rows as multiply_with() takes at once. Weights that are not packed meet as many as the
  // tile has room for while they are near.
  int row_group(int vecs) const {
    constexpr int kUnpacked = Op::kMaxRows / kUnpackedRows * kUnpackedRows;
    const int limit = row_limit<Op>(vecs);
    return packed || limit > kUnpacked ? limit : kUnpacked;
  }

  // tile = init + `count` rows from `first` on times the weights of one block; those of `next` come
  // nearer meanwhile.
  FASTRNN_HD void multiply_with(const Rows<Op>& rows, int64_t first, int count, const void* w,
                                Packed* panels, const Blocks& blocks, int64_t block, int64_t next,
                                const A* init, A* tile) const {
    if (packed) {
      multiply<Op>(rows, first, count, blocks.gates * blocks.vecs(block),
                   panel<Op>(panels, blocks, block, rows.depth), init, tile,
                   panel<Op>(panels, blocks, next, rows.depth));
    } else {
      // A single step reads its weights once, and they are seldom in a near cache.
      const auto multiply_rows =
          s.T == 1 ? multiply_unpacked<S, true> : multiply_unpacked<S, false>;
      multiply_rows(count, rows.row + first, rows.depth, (const S*)w, blocks.columns(block), init,
                    tile);
    }
  }

  S* output_row(const Lane& l, int64_t t, int64_t b) const {
    return (S*)p.output + l.schedule.outer_part(t, b) * s.R;
  }

  S* hidden_row(const Lane& l, int64_t t, int64_t b) const {
    if (!p.hidden) return scratch[l.d].hidden + b * s.H;
    return (S*)p.hidden + l.schedule.row(t, b) * s.H;
  }

  // h of row b before step t: the output of the step before it in the schedule, the initial state,
  // or nothing.
  const S* previous_h(const Lane& l, int64_t t, int64_t b) const {
    if (l.schedule.cut(t, b)) return zero_row;
    if (l.schedule.first(t, b)) return (const S*)p.states.initial[0] + l.schedule.state(b) * s.R;
    return output_row(l, l.schedule.previous(t), b);
  }

  const S* mask_of(const Lane& l, int64_t b) const {
    return s.operand_mask ? (const S*)s.operand_mask + l.schedule.state(b) * s.R : nullptr;
  }

  // A copy of h of row b with the mask on it.
  const S* masked(const Lane& l, int64_t b, const S* h) const;

  // State k + 1 of row b, (padded H).
  A* carried(int d, int k, int64_t b) const {
    return scratch[d].carried + (k * s.B + b) * units.padded();
  }

  Range rows_of(const Lane& l, int64_t t) const {
    return {l.batch.begin, larger(l.batch.begin, smaller(l.batch.end, l.schedule.rows(t)))};
  }

  void run_direction(int d, const Share& share, int thread) {
    int tile_rows = 0;
    Lane l{d,
           Schedule(s, d),
           rows_of_slice(s.B, slice_rows, share),
           part_of(units.count, plan.unit_slices, share.unit_slice),
           part_of(outs.count, plan.unit_slices, share.unit_slice),
           x_gates + thread * x_gates_size(),
           masked_rows + thread * slice_rows * s.R,
           meetings.of_slice(share, thread),
           x_rows.of(thread, &tile_rows),
           h_rows.of(thread, &tile_rows),
           hidden_rows.of(thread, &tile_rows),
           norm_rows + thread * norm_rows_size(),
           norm_rows + (thread + 1) * norm_rows_size() - 2 * units.padded(),
           norm_rows + (thread + 1) * norm_rows_size() - units.padded(),
           {}};
    load_states(l);
    for (int64_t e0 = 0; e0 < s.T; e0 += chunk_steps) {
      const Range chunk{e0, smaller(s.T, e0 + chunk_steps)};
      input_products(l, chunk);
      int64_t x_row = 0;
      for (int64_t e = chunk.begin; e < chunk.end; ++e) {
        const int64_t t = l.schedule.step(e);
        const Range rows = rows_of(l, t);
        gather_states(l, t, rows);
        (this->*step_of_cell)(l, e, rows, x_row);
        if (projected) {
          l.barrier.wait();
          project(l, e, rows);
        }
        if (recurrent) l.barrier.wait();
        x_row += rows.size();
      }
    }
    store_states(l);
  }

  // Makes the states before step t the rows of the recurrent product and the carried ones.
  void gather_states(Lane& l, int64_t t, Range rows) {
    for (int64_t b = rows.begin; recurrent && b < rows.end; ++b) {
      const S* const h = previous_h(l, t, b);
      l.h.set(b - rows.begin, s.operand_mask ? masked(l, b, h) : h);
    }
    if (carried_states == 0) return;
    l.schedule.for_cut(t, rows.begin, rows.end, [&](int64_t b) {
      for (int k = 0; k < carried_states; ++k)
        fill_units(carried(l.d, k, b), units, l.blocks, A(kCells[s.cell].state[k + 1].initial));
    });
  }

  // `gates`: of the cell, where that is a constant as one.
  A* x_gates_at(const Lane& l, int gates, int64_t block, int64_t row) const {
    return l.x_gates + (block - l.blocks.begin) * chunk_rows() * (units.unit_vecs * gates * W) +
           row * (gates * units.vecs(block) * W);
  }

  // The gate pre-activations that the input gives, for this thread's rows of all steps of a chunk.
  void input_products(Lane& l, Range chunk) {
    int64_t rows = 0;
    for (int64_t e = chunk.begin; e < chunk.end; ++e) {
      const int64_t t = l.schedule.step(e);
      const Range batch = rows_of(l, t);
      for (int64_t b = batch.begin; b < batch.end; ++b) {
        l.x.set(rows++, (const S*)p.x + l.schedule.outer(t, b) * s.I);
      }
    }
    if (gains > 0)
      return products_of_rows(l.x, rows, 0, p.weights[l.d].w_ih, scratch[l.d].w_ih, l.x_gates);
    sweep(l.blocks, 0, [&](int64_t block, int64_t next) {
      for_row_groups(0, rows, row_group(gates * units.vecs(block)), [&](int64_t row, int count) {
        multiply_with(l.x, row, count, p.weights[l.d].w_ih, scratch[l.d].w_ih, units, block, next,
                      scratch[l.d].b_ih + units.offset(block), x_gates_at(l, gates, block, row));
      });
    });
  }

  // Inline with its parts: a block takes little longer than a few calls.
  template <class Cell>
  FASTRNN_HD void recur(const Lane& l, int64_t t, Range batch, int64_t block, int64_t next,
                        int64_t x_row) {
    constexpr bool kRecurrent = Cell::kRecurrent;
    const int vecs = Cell::kGates * units.vecs(block);
    for_row_groups(0, batch.size(), row_group(vecs),
                   [&](int64_t row, int count) __attribute__((always_inline)) {
                     A tile[kTile] __attribute__((aligned(64)));
                     const A* const bias = scratch[l.d].b_hh + units.offset(block);
                     if constexpr (kRecurrent) {
                       multiply_with(l.h, row, count, p.weights[l.d].w_hh, scratch[l.d].w_hh, units,
                                     block, next, bias, tile);
                     }
                     for (int r = 0; r < count; ++r) {
                       const int64_t b = batch.begin + row + r;
                       const bool has_h = kRecurrent && !s.operand_mask;  // as it is
                       update<Cell>(l, t, b, block, has_h ? l.h.row[row + r] : previous_h(l, t, b),
                                    x_gates_at(l, Cell::kGates, block, x_row + row + r),
                                    kRecurrent ? tile + r * vecs * W : bias);
                     }
                   });
  }

  // With norms: (row, block, gate), so wide is a row.
  int64_t row_width() const { return units.unit_vectors * gates * W; }
  int64_t norm_rows_size() const { return slice_rows * row_width() + 2 * units.padded(); }
  void products_of_rows(const Rows<Op>& rows, int64_t count, int64_t e, const void* w,
                        Packed* panels, A* out) const;
  template <class Cell>
  void normalise(const Lane& l, int64_t t, int64_t b, int side, A* row) const;
  template <class Cell>
  void recur_rows(Lane& l, int64_t e, Range batch, int64_t x_row);
  template <class Cell>
  void carry(Lane& l, int64_t t, int64_t b, const A* x_row, const A* h_row) const;

  // The cell's pointwise step for one row and all units of a block.
  template <class Cell>
  void update(const Lane& l, int64_t t, int64_t b, int64_t block, const S* h_row, const A* x_tile,
              const A* h_tile);

  // h of step e, of h before its projection.
  void project(Lane& l, int64_t e, Range batch);

  void load_states(const Lane& l);

  // A row's final h is the output of the last step it was alive in; the others stayed in scratch.
  void store_states(const Lane& l);

  const ForwardParams& p;
  const LayerShape& s;
  const Step step_of_cell;
  // Of the cell: states besides h, its parameters as wide as all gates, those of (H).
  const int gates, carried_states, gains, unit_params;
  const bool recurrent, projected, packed;
  const Plan plan;
  const Blocks units, outs;
  int64_t slice_rows, chunk_steps;
  Arena arena{nullptr};
  Meetings meetings;
  A *zeros, *x_gates, *norm_rows;
  S* zero_row;     // with resets: (R), in place of a state
  S* masked_rows;  // with a mask: (threads, slice rows, R)
  RowStore<Op> x_rows, h_rows, hidden_rows;
  Scratch scratch[kMostDirections];
};

}  // namespace fastrnn::cpu::FASTRNN_ISA

#include "forward_norm.h"
#include "forward_update.h"
