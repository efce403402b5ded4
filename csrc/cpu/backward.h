// Backward of one layer over a whole sequence: the time loop reversed, in a single parallel region.
//
// Each step multiplies the gate gradients of the step after it with the recurrent weights,
// some units at a time, and finishes those units' cell gradients at once. What comes out are the
// gate gradients of every row; the gradients of the input and of the weights are plain products of
// those, left to the caller. Division among threads is as in forward.h. Where rows are normalised,
// a row's cell gradients wait for all of its products (backward_norm.h).
#pragma once

#include "../cells/cell_info.h"
#include "row_norm.h"
#include "unit_sums.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <class Op>
class Backward {
  using S = typename Op::Storage;
  using A = Accumulate<S>;
  using V = VecOf<S>;
  using Packed = typename Op::Packed;
  static constexpr int W = V::kWidth;
  // So many multiply-adds take about as long as a gate's part of update().
  static constexpr int kPointwise = 8;
  static constexpr int kTile = Op::kMaxRows * kMaxVecs * W;
  using Sums = UnitSums<Op>;
  // Of a cell: the copies of its gate gradients, and what UnitSums sum.
  template <class Cell>
  static constexpr int kCopies = Cell::kSharedGateGrad ? 1 : 2;
  template <class Cell>
  static constexpr int kSums =
      (kCopies<Cell> + Cell::kGains) * Cell::kGates + Cell::kParams - Cell::kGains;
  struct Lane;

 public:
  // What differs between the cells: step() of one of them.
  using Step = void (Backward::*)(const Lane& l, int64_t e, Range both, Range ending);

  Backward(const BackwardParams& params, Step step_of_cell, int threads)
      : p(params),
        s(params.shape),
        step_of_cell(step_of_cell),
        carried_states(kCells[s.cell].states - 1),
        copies(kCells[s.cell].shared_gate_grad ? 1 : 2),
        gate_gains(kCells[s.cell].statistics > 0 ? 2 * kCells[s.cell].gates : 0),
        unit_params(kCells[s.cell].params - (gate_gains > 0 ? 2 : 0)),
        parts(copies * kCells[s.cell].gates + gate_gains + unit_params),
        depth(kCells[s.cell].gates * s.H),
        projected(s.R != s.H),
        has_product(kCells[s.cell].recurrent),
        recurrent(has_product && (s.T > 1 || p.states.grad_initial[0])),
        plan(plan_for<Op>(s, double(depth) * double(has_product ? s.R : kPointwise), s.R, 1,
                          threads, gate_gains > 0)),
        units(make_blocks<Op>(s.H, 1, plan.unit_slices)),
        outs(make_blocks<Op>(s.R, 1, plan.unit_slices)) {
    slice_rows = (s.B + plan.batch_slices - 1) / plan.batch_slices;
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
    if (!p.grad_units) return;
    meetings.of_all(thread).wait();
    for (int d = 0; d < s.D; ++d) {
      const Share share = share_of(plan, thread, d);
      if (!share.active || share.batch_slice != 0) continue;
      sums_of(d).write(plan.batch_slices, lane_of(d, share, thread).blocks,
                       (A*)p.grad_units + d * parts * s.H);
    }
  }

  // The step e of the rows that have one; those that are `ending` get no gradient of a later one.
  template <class Cell>
  void step(const Lane& l, int64_t e, Range both, Range ending) {
    if constexpr (Cell::kNorms > 0) return step_rows<Cell>(l, e, both, ending);
    const int64_t t = l.schedule.step(e);
    sweep(l.blocks, e, [&](int64_t block, int64_t next) __attribute__((always_inline)) {
      step_block<Cell>(l, t, both, ending, block, next);
    });
  }

 private:
  struct Scratch {
    Packed *w_hh, *w_hr;  // panels, block after block
    A* grad_h;            // (B, padded H): what reaches h of the step before pointwise
    A* grad_carried;      // (states besides h, B, padded H): the same of those
    A* params;            // (unit_params, padded H)
    A* gains;             // (2 gates, padded H): of x, then of h
    A* sums;              // (batch slices, parts of Sums, padded H): over the slices' rows
  };

  // What a thread knows while it runs its part of a direction.
  struct Lane {
    int d;
    Schedule schedule;
    Range batch, blocks, outs;
    Barrier barrier;
    int64_t slice;
    Rows<Op> later;   // gate gradients of the step done before
    Rows<Op> grad_h;  // gradient of the projected h
    // With norms: what comes through a product to h of all rows, (slice rows, padded H); the
    // gradients of one row on their way, (2 gates, padded H); sums of a step, (parts, padded H).
    A *products, *grads, *sums;
  };

  Sums sums_of(int d) const { return {scratch[d].sums, units, parts}; }

  void lay_out() {
    arena = Arena{(char*)p.workspace};
    meetings = Meetings(arena, plan);
    zeros = arena.template take<A>(kTile);
    zero_row = arena.template take<S>(s.resets ? depth : 0);
    later_rows = RowStore<Op>(arena, plan.threads, recurrent ? slice_rows : 0, depth);
    grad_h_rows = RowStore<Op>(arena, plan.threads, projected ? slice_rows : 0, s.R);
    norm_rows = arena.template take<A>(plan.threads * norm_rows_size());
    for (int d = 0; d < s.D; ++d) {
      Scratch& m = scratch[d];
      m.w_hh =
          arena.template take<Packed>(recurrent ? panel_size<Op>(depth, outs.unit_vectors) : 0);
      m.w_hr = arena.template take<Packed>(projected ? panel_size<Op>(s.R, units.unit_vectors) : 0);
      m.grad_h = arena.template take<A>(projected ? 0 : s.B * units.padded());
      m.grad_carried = arena.template take<A>(carried_states * s.B * units.padded());
      m.params = arena.template take<A>(unit_params * units.padded());
      m.gains = arena.template take<A>(gate_gains * units.padded());
      m.sums =
          arena.template take<A>(p.grad_units ? plan.batch_slices * parts * units.padded() : 0);
    }
  }

  void pack(int thread) {
    if (thread == 0) {
      for (int i = 0; i < kTile; ++i) zeros[i] = 0;
      if (s.resets) __builtin_memset(zero_row, 0, depth * sizeof(S));
    }
    for (int d = 0; d < s.D; ++d) {
      if (recurrent) pack_columns(p.weights[d].w_hh, depth, s.R, outs, scratch[d].w_hh, thread);
      if (projected) pack_columns(p.weights[d].w_hr, s.R, s.H, units, scratch[d].w_hr, thread);
      const Range mine = part_of(units.count, plan.threads, thread);
      for (int64_t block = mine.begin; block < mine.end; ++block)
        pack_params<S>(p.weights[d].params + (gate_gains > 0 ? 2 : 0), units, block, unit_params,
                       scratch[d].params);
      if (gate_gains > 0) pack_gains(d, mine);
    }
  }

  void pack_columns(const void* w, int64_t rows, int64_t columns, const Blocks& blocks,
                    Packed* panels, int thread) const {
    const Range mine = part_of(blocks.count, plan.threads, thread);
    for (int64_t block = mine.begin; block < mine.end; ++block) {
      pack_panel<Op>((const S*)w, rows, columns, 1, blocks.columns(block),
                     panel<Op>(panels, blocks, block, rows));
    }
  }

  Lane lane_of(int d, const Share& share, int thread) const {
    A* const rows = norm_rows + thread * norm_rows_size();
    A* const grads = rows + slice_rows * units.padded();
    return {d,
            Schedule(s, d),
            rows_of_slice(s.B, slice_rows, share),
            part_of(units.count, plan.unit_slices, share.unit_slice),
            part_of(outs.count, plan.unit_slices, share.unit_slice),
            meetings.of_slice(share, thread),
            share.batch_slice,
            {},
            {},
            rows,
            grads,
            grads + gate_gains * units.padded()};
  }

  S* grad_gates(const Lane& l, int64_t t, int64_t b) const {
    return (S*)p.grad_gates + l.schedule.row(t, b) * (copies * depth);
  }
  const S* in_output(const void* array, const Lane& l, int64_t t, int64_t b) const {
    return (const S*)array + l.schedule.outer_part(t, b) * s.R;
  }
  S* grad_h_row(const Lane& l, int64_t t, int64_t b) const {
    return (S*)p.grad_h + l.schedule.row(t, b) * s.R;
  }

  Range within(const Lane& l, int64_t begin, int64_t end) const {
    const int64_t first = larger(l.batch.begin, begin);
    return {first, larger(first, smaller(l.batch.end, end))};
  }

  void run_direction(int d, const Share& share, int thread) {
    int tile_rows = 0;
    Lane l = lane_of(d, share, thread);
    l.later = later_rows.of(thread, &tile_rows);
    l.grad_h = grad_h_rows.of(thread, &tile_rows);
    load_states(l);
    int64_t after = -1;  // the step whose gate gradients are there already
    for (int64_t e = s.T - 1; e >= 0; --e) {
      const int64_t t = l.schedule.step(e);
      const int64_t alive = l.schedule.rows(t), fed = l.schedule.rows(after);
      // Rows with a later step get its gradient; rows that end here have none; rows that do not
      // reach back to t (reverse direction of packed data) have arrived at their initial state.
      const Range both = within(l, 0, smaller(alive, fed)), ending = within(l, fed, alive);
      gather_later(l, after);
      if (projected) {
        unproject(l, e, both, ending);
        l.barrier.wait();
        for (int64_t b = l.batch.begin; b < smaller(l.batch.end, alive); ++b) {
          l.grad_h.set(b - l.batch.begin, grad_h_row(l, t, b));
        }
      }
      (this->*step_of_cell)(l, e, both, ending);
      arrive(l, after, within(l, alive, fed));
      drop_cut(l, t);
      after = t;
      if (has_product) l.barrier.wait();
    }
    if (p.states.grad_initial[0]) gather_later(l, after);
    arrive(l, after, l.batch);
    store_states(l);
  }

  // What reaches state k + 1 of row b, (padded H).
  A* grad_carried(int d, int k, int64_t b) const {
    return scratch[d].grad_carried + (k * s.B + b) * units.padded();
  }

  // What step t left for states that a reset keeps away from it.
  void drop_cut(const Lane& l, int64_t t) {
    const Scratch& m = scratch[l.d];
    l.schedule.for_cut(t, l.batch.begin, l.batch.end, [&](int64_t b) {
      if (!projected) fill_units(m.grad_h + b * units.padded(), units, l.blocks, A(0));
      for (int k = 0; k < carried_states; ++k)
        fill_units(grad_carried(l.d, k, b), units, l.blocks, A(0));
    });
  }

  // Makes the gate gradients of step `after` the rows of recurrent_product, as far as they reach
  // the state before it.
  void gather_later(Lane& l, int64_t after) {
    if (!has_product) return;
    const Range rows = within(l, 0, l.schedule.rows(after));
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      l.later.set(b - l.batch.begin, l.schedule.cut(after, b)
                                         ? zero_row
                                         : grad_gates(l, after, b) + (copies - 1) * depth);
    }
  }

  const S* mask_of(const Lane& l, int64_t b) const {
    return s.operand_mask ? (const S*)s.operand_mask + l.schedule.state(b) * s.R : nullptr;
  }

  // tile = gate gradients of the later step times the recurrent weights and the mask; zero without
  // weights.
  void recurrent_product(const Lane& l, int64_t b, int count, int64_t block, int64_t next,
                         A* tile) {
    if (!has_product) {
      for (int i = 0; i < count * outs.vecs(block) * W; ++i) tile[i] = 0;
      return;
    }
    multiply<Op>(l.later, b - l.batch.begin, count, outs.vecs(block),
                 panel<Op>(scratch[l.d].w_hh, outs, block, depth), zeros, tile,
                 panel<Op>(scratch[l.d].w_hh, outs, next, depth));
    if (!s.operand_mask) return;
    for (int r = 0; r < count; ++r) {
      for (int v = 0; v < outs.vecs(block); ++v, tile += W) {
        const int64_t j = outs.unit(block, v);
        (V::load(tile) * load(mask_of(l, b + r) + j, s.R - j)).store(tile);
      }
    }
  }

  // The gradient of the projected h of each row of step e.
  void unproject(const Lane& l, int64_t e, Range both, Range ending);

  // tile = what comes through a product to h of some rows.
  FASTRNN_HD void product_of(const Lane& l, int64_t b, int count, int64_t block, int64_t next,
                             A* tile) {
    if (!projected) return recurrent_product(l, b, count, block, next, tile);
    Packed* const w_hr = scratch[l.d].w_hr;
    multiply<Op>(l.grad_h, b - l.batch.begin, count, units.vecs(block),
                 panel<Op>(w_hr, units, block, s.R), zeros, tile,
                 panel<Op>(w_hr, units, next, s.R));
  }

  template <class Cell>
  FASTRNN_HD void step_block(const Lane& l, int64_t t, Range both, Range ending, int64_t block,
                             int64_t next) {
    typename Sums::template Step<kSums<Cell>> sums;
    const int vecs = units.vecs(block);
    const auto update_rows = [&](Range batch) {
      for_row_groups(batch.begin, batch.end, row_limit<Op>(vecs),
                     [&](int64_t b, int count) __attribute__((always_inline)) {
                       A tile[kTile] __attribute__((aligned(64)));
                       for (int r = 0; r < count && count > 1; ++r)
                         prefetch<Cell>(l, t, b + r, block);
                       product_of(l, b, count, block, next, tile);
                       for (int r = 0; r < count; ++r)
                         update<Cell>(l, t, b + r, block, tile + r * vecs * W, sums);
                     });
    };
    update_rows(both);
    if (projected) {
      update_rows(ending);
    } else {
      for (int64_t b = ending.begin; b < ending.end; ++b) update<Cell>(l, t, b, block, zeros, sums);
    }
    if (p.grad_units) sums_of(l.d).add(l.slice, block, sums);
  }

  // With norms.
  int64_t norm_rows_size() const {
    return gate_gains > 0 ? (slice_rows + gate_gains + parts) * units.padded() : 0;
  }
  void pack_gains(int d, Range blocks);
  void products_of_rows(const Lane& l, int64_t e, Range both, Range ending);
  template <class Cell>
  void step_rows(const Lane& l, int64_t e, Range both, Range ending);
  template <class Cell>
  void update_row(const Lane& l, int64_t t, int64_t b, const A* product, A* sums);

  // What update() reads and writes lies too scattered for the CPU to see it coming; it arrives
  // during the product. Forced inline: GCC takes a function that only prefetches for one without
  // effects, and drops its calls.
  template <class Cell>
  FASTRNN_HD void prefetch(const Lane& l, int64_t t, int64_t b, int64_t block) const {
    constexpr int K = Cell::kSaved, kCarried = Cell::kCarried;
    const int64_t row = l.schedule.row(t, b), j = units.unit(block, 0),
                  before = l.schedule.previous(t);
    const int64_t H = s.H, width = units.vecs(block) * W;
    const S* const gates = (const S*)p.gates + row * K * H + j;
    for (int k = 0; k < K; ++k) prefetch_values(gates + k * H, width);
    if (p.states.carried && !l.schedule.first(t, b)) {
      const A* const carried =
          (const A*)p.states.carried + l.schedule.row(before, b) * kCarried * H;
      for (int k = 0; k < kCarried; ++k) prefetch_values(carried + k * H + j, width);
    }
    if (!projected) prefetch_values(in_output(p.grad_output, l, t, b) + j, width);
    S* const out = grad_gates(l, t, b) + j;
    for (int g = 0; g < kCopies<Cell> * Cell::kGates; ++g) prefetch_written(out + g * H, width);
  }

  // The cell's pointwise gradients for one row and all units of a block; h_tile is what came
  // through a product.
  template <class Cell>
  void update(const Lane& l, int64_t t, int64_t b, int64_t block, const A* h_tile,
              typename Sums::template Step<kSums<Cell>>& sums);

  // Rows whose first step was `after`: the gradient of their initial h.
  void arrive(const Lane& l, int64_t after, Range batch);

  void load_states(const Lane& l);
  void store_states(const Lane& l);

  const BackwardParams& p;
  const LayerShape& s;
  const Step step_of_cell;
  // Of the cell: states besides h, copies of gate gradients (the last one goes to h), gains of
  // gates, parameters of (H), parts of Sums.
  const int carried_states, copies, gate_gains, unit_params, parts;
  const int64_t depth;
  const bool projected, has_product, recurrent;
  const Plan plan;
  const Blocks units, outs;
  int64_t slice_rows;
  Arena arena{nullptr};
  Meetings meetings;
  A *zeros, *norm_rows;
  S* zero_row;  // with resets: (depth), in place of gate gradients
  RowStore<Op> later_rows, grad_h_rows;
  Scratch scratch[kMostDirections];
};

}  // namespace fastrnn::cpu::FASTRNN_ISA

#include "backward_norm.h"
#include "backward_update.h"
