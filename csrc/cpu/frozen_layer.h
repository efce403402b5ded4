// A frozen stack over a whole sequence: one parallel region around all layers.
//
// A direction runs as in forward.h: for a chunk of steps a thread computes the gate
// pre-activations that the input gives, then, step by step and block by block, the recurrent
// product of a few rows and their cell update. Besides the output, an update writes h as the next
// step's product reads it, in the operand's values.
#pragma once

#include "frozen_math.h"
#include "frozen_product.h"
#include "layout.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <class Cell, class Op>
class FrozenStack {
  using V = Vec<float>;
  using Value = typename Op::Value;
  using Row = FrozenRow<Value>;
  static constexpr int G = Cell::kGates, S = Cell::kStates, kRows = frozen_rows<Op>(G);
  static constexpr int kOutRows = frozen_rows<Op>(1);  // of the projection
  // Updates that run side by side.
  static constexpr int kTogether = 2;
  static constexpr int kTile = kRows * G * kFrozenLanes;

 public:
  FrozenStack(const FrozenCall& call, int threads)
      : call(call),
        s(call.shape),
        N(call.offsets[call.T]),
        width(s.D * s.R),
        blocks(frozen_padded(s.H) / kFrozenLanes),
        outs(projected() ? frozen_padded(s.R) / kFrozenLanes : 0),
        plan(plan_of(threads)) {
    slice_rows = (call.B + plan.batch_slices - 1) / plan.batch_slices;
    const double input_bytes = 4.0 / Op::kValues * G * double(s.H) * double(larger(s.I, width));
    chunk_steps = chunk_length(call.T, slice_rows, input_bytes, plan);
    lay_out();
  }

  size_t workspace() const { return arena.used; }
  int threads() const { return plan.threads; }

  void prepare() { meetings.clear(); }

  void run(int thread) {
    for (int layer = 0; layer < s.layers; ++layer) {
      if (layer > 0) meetings.of_all(thread).wait();
      for (int d = 0; d < s.D; ++d) {
        const Share share = share_of(plan, thread, d);
        if (share.active) run_direction(layer, d, share, thread);
      }
    }
  }

 private:
  // Of a direction; every layer uses it anew.
  struct Scratch {
    Value* h[2];       // (B, h_stride), before and after a step in turn
    Value* hidden;     // (B, hidden_stride), h before the projection
    float* states[S];  // (B, padded)
  };

  struct Lane {
    int layer, d;
    FrozenDirection at;
    FrozenRows<const float> x;
    int64_t inputs;
    FrozenRows<float> out;
    Range batch, blocks, outs;
    float* x_gates;
    Value* x_values;
    Row *x_rows, *h_rows;
    TileSetup& setup;
    Barrier barrier;
  };

  // An update of 16 units of a row.
  struct Job {
    const float *x, *h;
    int64_t b, unit;
    float* out;
  };

  bool projected() const { return s.R != s.H; }
  bool reverse(const Lane& l) const { return l.d == 1; }
  int64_t chunk_rows() const { return chunk_steps * slice_rows; }
  int64_t most_blocks() const { return (blocks + plan.unit_slices - 1) / plan.unit_slices; }

  static int64_t stride(int64_t values) { return odd_lines<Value>(frozen_padded(values)); }

  Plan plan_of(int threads) const {
    LayerShape shape{};
    shape.T = call.T;
    shape.B = call.B;
    shape.D = s.D;
    shape.offsets = call.offsets;
    StepWork work;
    work.macs_per_row = double(G * s.H) * double(s.R);
    const double values = kFrozenWidth * Op::kValues;  // that one instruction multiplies
    // Tiles multiply 16 rows in 16 cycles; the loads of weights leave half of that rate.
    work.macs_per_cycle = values * (Op::kTiles ? 8 : kProductsPerCycle);
    work.least_rows = Op::kTiles ? 8 : 1;
    work.weight_bytes = work.macs_per_row * 4 / Op::kValues;
    work.unit_vectors = work.most_slices = blocks;
    work.widest_block = 1;
    return make_plan(shape, work, threads);
  }

  void lay_out() {
    arena = Arena{(char*)call.workspace};
    meetings = Meetings(arena, plan);
    middle[0] = arena.take<float>(s.layers > 1 ? N * width : 0);
    middle[1] = arena.take<float>(s.layers > 2 ? N * width : 0);
    x_stride = Op::kConverts ? stride(s.layers > 1 ? larger(s.I, width) : s.I) : 0;
    h_stride = stride(s.R);
    hidden_stride = stride(s.H);
    x_gates = arena.take<float>(plan.threads * most_blocks() * chunk_rows() * G * kFrozenLanes);
    x_values = arena.take<Value>(plan.threads * chunk_rows() * x_stride);
    rows = arena.take<Row>(plan.threads * (chunk_rows() + slice_rows));
    for (int d = 0; d < s.D; ++d) {
      for (Value*& h : scratch[d].h) h = arena.take<Value>(call.B * h_stride);
      scratch[d].hidden = arena.take<Value>(projected() ? call.B * hidden_stride : 0);
      for (int k = 0; k < S; ++k)
        scratch[d].states[k] = arena.take<float>(call.B * frozen_padded(state_width(k)));
    }
  }

  int64_t state_width(int k) const { return k == 0 ? s.R : s.H; }
  float* state(int d, int k, int64_t b) const {
    return scratch[d].states[k] + b * frozen_padded(state_width(k));
  }
  int64_t caller_row(int64_t b) const { return call.order ? call.order[b] : b; }
  template <class T>
  T* row_of(const FrozenRows<T>& rows, int64_t t, int64_t b) const {
    if (rows.dense) return rows.data + (call.offsets[t] + b) * rows.row;
    return rows.data + t * rows.step + caller_row(b) * rows.row;
  }

  FrozenPanel panel(const FrozenMatrix& m, int64_t block) const {
    const char* const base = call.packed;
    const int64_t column = block * m.gates * kFrozenLanes;
    return {m.steps, base + m.panels + block * m.panel_bytes,
            (const float*)(base + m.bias) + column, (const float*)(base + m.scales) + column,
            (const int32_t*)(base + m.sums) + column};
  }
  FrozenAhead ahead(const FrozenMatrix& m, int64_t block) const {
    const char* const first = call.packed + m.panels + block * m.panel_bytes;
    return {first, first + m.panel_bytes};
  }

  void run_direction(int layer, int d, const Share& share, int thread) {
    FrozenRows<float> out{middle[layer % 2], 0, width, true};
    if (layer + 1 == s.layers) out = call.output;
    out.data += d * s.R;
    TileSetup setup;
    Row* const own_rows = rows + thread * (chunk_rows() + slice_rows);
    Lane l{layer,
           d,
           frozen_direction(s, layer, d),
           layer > 0 ? FrozenRows<const float>{middle[(layer - 1) % 2], 0, width, true} : call.x,
           layer > 0 ? width : s.I,
           out,
           rows_of_slice(call.B, slice_rows, share),
           part_of(blocks, plan.unit_slices, share.unit_slice),
           part_of(outs, plan.unit_slices, share.unit_slice),
           x_gates + thread * most_blocks() * chunk_rows() * G * kFrozenLanes,
           x_values + thread * chunk_rows() * x_stride,
           own_rows,
           own_rows + chunk_rows(),
           setup,
           meetings.of_slice(share, thread)};
    load_states(l);
    l.barrier.wait();
    for (int64_t e0 = 0; e0 < call.T; e0 += chunk_steps) {
      const Range chunk{e0, smaller(call.T, e0 + chunk_steps)};
      multiply_inputs(l, chunk);
      int64_t x_row = 0;
      for (int64_t e = chunk.begin; e < chunk.end; ++e) {
        const int64_t t = time_of(l, e);
        const Range batch = rows_of(l, t);
        recur(l, e, t, batch, x_row);
        l.barrier.wait();
        if (projected()) {
          project(l, e, t, batch);
          l.barrier.wait();
        }
        x_row += batch.size();
      }
    }
    store_states(l);
  }

  int64_t time_of(const Lane& l, int64_t e) const { return reverse(l) ? call.T - 1 - e : e; }
  Range rows_of(const Lane& l, int64_t t) const {
    const int64_t alive = call.offsets[t + 1] - call.offsets[t];
    return {l.batch.begin, larger(l.batch.begin, smaller(l.batch.end, alive))};
  }

  void multiply_inputs(Lane& l, Range chunk) {
    int64_t count = 0;
    for (int64_t e = chunk.begin; e < chunk.end; ++e) {
      const int64_t t = time_of(l, e);
      const Range batch = rows_of(l, t);
      for (int64_t b = batch.begin; b < batch.end; ++b, ++count) {
        const float* const from = row_of(l.x, t, b);
        if constexpr (Op::kConverts) {
          Value* const to = l.x_values + count * x_stride;
          l.x_rows[count] = {to, Op::convert(from, l.inputs, to)};
        } else {
          l.x_rows[count] = {from, 1};
        }
      }
    }
    for (int64_t block = l.blocks.begin; block < l.blocks.end; ++block) {
      const FrozenPanel w = panel(l.at.w_ih, block);
      FrozenAhead next =
          block + 1 < l.blocks.end ? ahead(l.at.w_ih, block + 1) : ahead(l.at.w_hh, l.blocks.begin);
      for_row_groups(0, count, kRows, [&](int64_t row, int group) {
        multiply_frozen_rows<Op, G>(group, l.x_rows + row, w, next, l.setup,
                                    x_gates_at(l, block, row));
      });
    }
  }

  float* x_gates_at(const Lane& l, int64_t block, int64_t row) const {
    return l.x_gates + ((block - l.blocks.begin) * chunk_rows() + row) * (G * kFrozenLanes);
  }

  void recur(Lane& l, int64_t e, int64_t t, Range batch, int64_t x_row) {
    for (int64_t b = batch.begin; b < batch.end; ++b)
      l.h_rows[b - batch.begin] = {scratch[l.d].h[e % 2] + b * h_stride, Op::kStateScale};
    // Single rows wait for a second block to be updated with.
    float tiles[kTogether][kTile] __attribute__((aligned(64)));
    Job jobs[kRows + kTogether];
    int waiting = 0;
    const auto update_all = [&] {
      int done = 0;
      for (; done + kTogether <= waiting; done += kTogether)
        update<kTogether>(l, jobs + done, (e + 1) % 2);
      for (; done < waiting; ++done) update<1>(l, jobs + done, (e + 1) % 2);
      waiting = 0;
    };
    sweep(l.blocks, e, [&](int64_t block, int64_t after) {
      const FrozenPanel w = panel(l.at.w_hh, block);
      FrozenAhead next = ahead(l.at.w_hh, after);
      for_row_groups(0, batch.size(), kRows, [&](int64_t row, int count) {
        float* const tile = tiles[batch.size() == 1 ? waiting : 0];
        multiply_frozen_rows<Op, G>(count, l.h_rows + row, w, next, l.setup, tile);
        const float* const x = x_gates_at(l, block, x_row + row);
        for (int r = 0; r < count; ++r) {
          const int64_t b = batch.begin + row + r, unit = block * kFrozenLanes;
          const int64_t offset = r * G * kFrozenLanes;
          jobs[waiting++] = {x + offset, tile + offset, b, unit, row_of(l.out, t, b) + unit};
        }
        if (batch.size() > 1 || waiting == kTogether) update_all();
      });
    });
    update_all();
  }

  // Stores what a product reads. One of pairs may read past the last of the units, where weights
  // are 0: a value that is not finite must not stand there.
  FASTRNN_HD void keep(Value* row, int64_t units, int64_t unit, V x) {
    Op::store(row + unit, x);
    if constexpr (Op::kValues == 2) {
      const int64_t past = unit + kFrozenWidth - units;
      if (past > 0) __builtin_memset(row + units, 0, size_t(past) * sizeof(Value));
    }
  }

  template <int count>
  FASTRNN_HD void update(const Lane& l, const Job* jobs, int after) {
    const bool has_h = !projected();
#pragma GCC unroll 1
    for (int part = 0; part < kParts; ++part) {
      const int lane = part * kFrozenWidth;
      Lanes<count> x[G], h[G], prev[S], next[S];
      for_each<count>([&](auto i) {
        for_each<G>([&](auto g) {
          x[g].v[i] = V::load(jobs[i].x + g * kFrozenLanes + lane);
          h[g].v[i] = V::load(jobs[i].h + g * kFrozenLanes + lane);
        });
        if constexpr (Cell::kReadsH)
          prev[0].v[i] = V::load(state(l.d, 0, jobs[i].b) + jobs[i].unit + lane);
        for_each<Cell::kCarried>([&](auto k) {
          prev[k + 1].v[i] = V::load(state(l.d, k + 1, jobs[i].b) + jobs[i].unit + lane);
        });
      });
      step_of<Cell>(In<Lanes<count>>{x, h, prev, nullptr, nullptr}, next);
      for_each<count>([&](auto i) {
        const int64_t unit = jobs[i].unit + lane, b = jobs[i].b;
        for_each<Cell::kCarried>(
            [&](auto k) { next[k + 1].v[i].store(state(l.d, k + 1, b) + unit); });
        if (!has_h) return keep(scratch[l.d].hidden + b * hidden_stride, s.H, unit, next[0].v[i]);
        next[0].v[i].store(state(l.d, 0, b) + unit);
        keep(scratch[l.d].h[after] + b * h_stride, s.H, unit, next[0].v[i]);
        fastrnn::cpu::FASTRNN_ISA::store(jobs[i].out + lane, next[0].v[i], s.H - unit);
      });
    }
  }

  void project(Lane& l, int64_t e, int64_t t, Range batch) {
    for (int64_t b = batch.begin; b < batch.end; ++b)
      l.h_rows[b - batch.begin] = {scratch[l.d].hidden + b * hidden_stride, 1};
    float tile[kOutRows * kFrozenLanes] __attribute__((aligned(64)));
    for (int64_t block = l.outs.begin; block < l.outs.end; ++block) {
      const FrozenPanel w = panel(l.at.w_hr, block);
      FrozenAhead next = ahead(l.at.w_hr, smaller(block + 1, l.outs.end - 1));
      for_row_groups(0, batch.size(), kOutRows, [&](int64_t row, int count) {
        multiply_frozen_rows<Op, 1>(count, l.h_rows + row, w, next, l.setup, tile);
        for (int r = 0; r < count; ++r) {
          const int64_t b = batch.begin + row + r;
          for (int lane = 0; lane < kFrozenLanes; lane += kFrozenWidth) {
            const int64_t unit = block * kFrozenLanes + lane;
            const V h = V::load(tile + r * kFrozenLanes + lane);
            h.store(state(l.d, 0, b) + unit);
            keep(scratch[l.d].h[(e + 1) % 2] + b * h_stride, s.R, unit, h);
            fastrnn::cpu::FASTRNN_ISA::store(row_of(l.out, t, b) + unit, h, s.R - unit);
          }
        }
      });
    }
  }

  // The thread's units of a state.
  Range units_of(const Lane& l, int k) const {
    const Range part = k == 0 && projected() ? l.outs : l.blocks;
    return {part.begin * kFrozenLanes, part.end * kFrozenLanes};
  }
  float* callers_state(const Lane& l, int k, int64_t b) const {
    return call.states[k] + ((l.layer * s.D + l.d) * call.batch + caller_row(b)) * state_width(k);
  }

  void load_states(const Lane& l) {
    for (int k = 0; k < S; ++k) {
      const Range units = units_of(l, k);
      for (int64_t b = l.batch.begin; b < l.batch.end; ++b) {
        const float* const from = callers_state(l, k, b);
        for (int64_t unit = units.begin; unit < units.end; unit += kFrozenWidth) {
          const V value = load(from + unit, state_width(k) - unit);
          value.store(state(l.d, k, b) + unit);
          if (k > 0) continue;
          // Both, for a row that begins in a later step.
          for (Value* h : scratch[l.d].h) Op::store(h + b * h_stride + unit, value);
        }
      }
    }
  }

  void store_states(const Lane& l) {
    for (int k = 0; k < S; ++k) {
      const Range units = units_of(l, k);
      for (int64_t b = l.batch.begin; b < l.batch.end; ++b) {
        float* const to = callers_state(l, k, b);
        for (int64_t unit = units.begin; unit < units.end; unit += kFrozenWidth)
          fastrnn::cpu::FASTRNN_ISA::store(to + unit, V::load(state(l.d, k, b) + unit),
                                           state_width(k) - unit);
      }
    }
  }

  const FrozenCall& call;
  const FrozenShape& s;
  const int64_t N, width, blocks, outs;
  const Plan plan;
  int64_t slice_rows, chunk_steps, x_stride, h_stride, hidden_stride;
  Arena arena{nullptr};
  Meetings meetings;
  float *middle[2], *x_gates;  // outputs of the layers but the last, in turn
  Value* x_values;
  Row* rows;
  Scratch scratch[2];
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
