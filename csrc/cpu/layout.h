// Small pieces that forward and backward share: scratch memory, ranges.
#pragma once

#include "pack.h"
#include "parallel.h"
#include "params.h"
#include "plan.h"
#include "schedule.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// Hands out parts of the workspace. With a null base it only counts.
struct Arena {
  char* base;
  size_t used = 0;

  template <class T>
  T* take(int64_t count) {
    T* part = base ? (T*)(base + used) : nullptr;
    used += (size_t(count) * sizeof(T) + 63) / 64 * 64;
    return part;
  }
};

// Rounded up to an odd number of cache lines, so that rows do not compete for the same sets.
template <class T>
FASTRNN_HD int64_t odd_lines(int64_t values) {
  constexpr int64_t kValues = kLine / sizeof(T);
  return ((values + kValues - 1) / kValues | 1) * kValues;
}

// Room for the rows that every thread multiplies, capacity of them each.
template <class Op>
class RowStore {
  using S = typename Op::Storage;
  using Row = typename Op::Row;

 public:
  RowStore() = default;
  // `packed`: the weights that the rows meet.
  RowStore(Arena& arena, int threads, int64_t capacity, int64_t depth, bool packed = true)
      : capacity(capacity),
        depth(depth),
        stride(kCopiesRows<Op> && packed ? odd_lines<Row>(padded_depth<Op>(depth)) : 0),
        pointers(arena.template take<const S*>(threads * capacity)),
        copies(arena.template take<Row>(threads * capacity * stride)) {}

  // `tile_rows` belongs to the thread.
  Rows<Op> of(int thread, int* tile_rows) const {
    return {pointers + thread * capacity, depth, copies + thread * capacity * stride, stride,
            tile_rows};
  }

 private:
  int64_t capacity = 0, depth = 0, stride = 0;
  const S** pointers = nullptr;
  Row* copies = nullptr;
};

// Where threads wait for each other: all of a call's, and those that share the units of a slice.
class Meetings {
 public:
  Meetings() = default;
  Meetings(Arena& arena, const Plan& plan)
      : threads(plan.threads),
        slice(plan.unit_slices),
        arrivals(arena.take<Arrivals>(2 * plan.threads)) {}

  void clear() { __builtin_memset(arrivals, 0, 2 * threads * sizeof(Arrivals)); }

  Barrier of_all(int thread) const { return {arrivals, threads, thread}; }
  Barrier of_slice(const Share& share, int thread) const {
    return {arrivals + threads + thread - share.unit_slice, slice, share.unit_slice};
  }

 private:
  int threads = 1, slice = 1;
  Arrivals* arrivals = nullptr;
};

struct Range {
  int64_t begin, end;

  FASTRNN_HD int64_t size() const { return end - begin; }
};

// The batch rows of a thread's slice, of which each has `slice_rows` but the last.
FASTRNN_HD Range rows_of_slice(int64_t batch, int64_t slice_rows, const Share& share) {
  const int64_t first = smaller(batch, share.batch_slice * slice_rows);
  return {first, smaller(batch, first + slice_rows)};
}

// Steps in a chunk of time, whose input products a thread makes at once: of some rows, and of more
// where the weights, read once for each chunk, do not stay in its cache.
inline int64_t chunk_length(int64_t T, int64_t slice_rows, double input_bytes, const Plan& plan) {
  const bool stays = input_bytes / plan.unit_slices <= kNearCache / 2;
  return larger(1, smaller(T, (stays ? 64 : 256) / larger(1, slice_rows)));
}

// Runs the pass that make(threads) returns. With `measure` only says how much memory it needs: with
// as many threads, and with one, which is what it gets where fewer are granted.
template <class Make>
size_t serve(int threads, bool measure, const Make& make) {
  if (measure) {
    const size_t asked = make(threads).workspace();
    return threads == 1 ? asked : size_t(larger(asked, make(1).workspace()));
  }
  auto pass = make(threads);
  pass.prepare();
  const auto body = [](void* context, int thread) { ((decltype(pass)*)context)->run(thread); };
  return run_team(pass.threads(), body, &pass) ? 0 : serve(1, false, make);
}

// Part `index` of `parts` near-equal parts of 0 .. count.
FASTRNN_HD Range part_of(int64_t count, int64_t parts, int64_t index) {
  return {count * index / parts, count * (index + 1) / parts};
}

// Calls f(first, count) on groups of at most `limit` rows that differ by at most one in size.
template <class F>
FASTRNN_HD void for_row_groups(int64_t begin, int64_t end, int limit, const F& f) {
  if (end <= begin) return;
  const int64_t groups = (end - begin + limit - 1) / limit;
  for (int64_t i = 0; i < groups; ++i) {
    const Range part = part_of(end - begin, groups, i);
    f(begin + part.begin, int(part.size()));
  }
}

// Calls f(block, next) for the blocks of a time step, `next` being the block whose turn it is then:
// there in one step and back in the other, so that each step begins with the weights that the step
// before has left in the caches.
template <class F>
FASTRNN_HD void sweep(Range blocks, int64_t step, const F& f) {
  const int64_t direction = step % 2 ? -1 : 1;
  int64_t block = step % 2 ? blocks.end - 1 : blocks.begin;
  for (int64_t left = blocks.size(); left > 0; --left, block += direction) {
    f(block, left > 1 ? block + direction : block);
  }
}

// As many vectors of units as a panel can hold with all their gates.
constexpr int widest_block(int gates) { return gates < kMaxVecs ? kMaxVecs / gates : 1; }

// The blocks that hold all gates of some hidden units, a block at least for each slice.
template <class Op>
FASTRNN_HD Blocks make_blocks(int64_t units, int gates, int64_t slices) {
  const int64_t vectors = (units + kLanes<Op> - 1) / kLanes<Op>;
  return {units, kLanes<Op>, int(block_vectors(vectors, widest_block(gates), slices)), gates};
}

// Where a block starts in panels over `depth` values of k.
template <class Op>
FASTRNN_HD typename Op::Packed* panel(typename Op::Packed* panels, const Blocks& blocks,
                                      int64_t block, int64_t depth) {
  return panels + panel_size<Op>(depth, 1) / kLanes<Op> * blocks.offset(block);
}

// Calls f(row, first unit) for every vector of the blocks in every row.
template <class F>
FASTRNN_HD void for_units(Range rows, const Blocks& units, Range blocks, const F& f) {
  for (int64_t b = rows.begin; b < rows.end; ++b) {
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      for (int u = 0; u < units.vecs(block); ++u) f(b, units.unit(block, u));
    }
  }
}

template <class T>
FASTRNN_HD void prefetch_values(const T* first, int64_t count) {
  for (int64_t at = 0; at < count * int64_t(sizeof(T)); at += kLine) {
    __builtin_prefetch((const char*)first + at, 0, 2);
  }
}

template <class T>
FASTRNN_HD void prefetch_written(const T* first, int64_t count) {
  for (int64_t at = 0; at < count * int64_t(sizeof(T)); at += kLine) {
    __builtin_prefetch((const char*)first + at, 1, 3);
  }
}

// Sets a row's values of the units of some blocks.
template <class A>
FASTRNN_HD void fill_units(A* row, const Blocks& units, Range blocks, A value) {
  const int64_t end = smaller(units.unit(blocks.end, 0), units.padded());
  for (int64_t j = units.unit(blocks.begin, 0); j < end; ++j) row[j] = value;
}

// A cell's parameters of a block, widened: (count, padded units), zero past the last unit.
template <class S>
FASTRNN_HD void pack_params(const void* const* params, const Blocks& units, int64_t block,
                            int count, Accumulate<S>* out) {
  for (int k = 0; k < count; ++k) {
    for (int u = 0; u < units.vecs(block); ++u) {
      const int64_t j = units.unit(block, u);
      load((const S*)params[k] + j, units.units - j).store(out + k * units.padded() + j);
    }
  }
}

// The plan for a recurrent product with `weights` weights that ends in `units` units. Where there
// are fewer rows than threads nothing else is left to share out, and units are divided down to
// single vectors; but not where rows have to stay whole.
template <class Op>
Plan plan_for(const LayerShape& s, double weights, int64_t units, int gates, int threads,
              bool whole_rows) {
  const double macs = double(kLanes<Op>) * Op::kDepth * kProductsPerCycle;
  const Blocks widest = make_blocks<Op>(units, gates, 1);
  StepWork work;
  work.macs_per_row = weights;
  // Tiles of 16 rows are half used by the weights' loads.
  work.macs_per_cycle = Op::kTiles ? 256 : macs;
  work.least_rows = Op::kTiles ? 24 : 1;
  work.weight_bytes = weights * sizeof(typename Op::Packed);
  work.unit_vectors = widest.unit_vectors;
  work.widest_block = widest.unit_vecs;
  work.most_slices = s.D * s.B < threads ? widest.unit_vectors : widest.count;
  if (whole_rows) work.most_slices = 1;
  return make_plan(s, work, threads);
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
