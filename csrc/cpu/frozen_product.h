// Products of a few rows with a panel of frozen weights (frozen.h): in the vector registers, or of
// several rows in the tile registers. A panel's cache line has 16 units of a gate: a pass over the
// panel takes whole lines, of as many gates as the registers have sums for.
#pragma once

#include "frozen_operands.h"
#include "tile_registers.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// What is used next: every pass brings as many of its lines nearer as the pass has steps.
struct FrozenAhead {
  const char *line, *end;
};

// As many sums as fit the registers beside the weights of a step and a broadcast value.
template <class Op>
constexpr int kFrozenSums = kVectorRegisters - (kVectorRegisters > 16 ? 6 : Op::kOthers);
// Rows that meet a panel at once: the registers have a vector of each gate, or a line of one.
template <class Op>
constexpr int frozen_rows(int gates) {
  if (Op::kTiles) return 16;
  const int fit = kFrozenSums<Op> / (kParts == 1 ? gates : kParts);
  return fit > 8 ? 8 : fit;
}
// Few sums would wait for each other: several of each then.
constexpr int frozen_chains(int sums) { return sums >= 8 ? 1 : sums >= 3 ? 2 : 4; }

// tile[r][g] = bias[g] + the products of rows[r] with the 16 units of gate g, for N gates from
// `first` on.
template <class Op, int G, int R, int N>
FASTRNN_HD void multiply_gates(const FrozenRow<typename Op::Value>* rows, const FrozenPanel& p,
                               int first, const char* ahead, float* tile) {
  using Sum = typename Op::Sum;
  constexpr int V = N * kParts, C = frozen_chains(R * V);
  const typename Op::Value* row[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) row[r] = rows[r].values;
  Sum sum[C][R][V];
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[c][r][v] = Op::zero();
    }
  }
  const char* w = p.weights + first * kFrozenLine;
  int64_t s = 0;
  for (; s + C <= p.steps; s += C) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      if constexpr (R > 1) {  // one row has no time for it
        __builtin_prefetch(ahead, 0, 2);
        ahead += kFrozenLine;
      }
      Op::template step<R, V>(row, (s + c) * Op::kValues, w, sum[c]);
      w += G * kFrozenLine;
    }
  }
  for (; s < p.steps; ++s, w += G * kFrozenLine)
    Op::template step<R, V>(row, s * Op::kValues, w, sum[0]);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      Sum total = sum[0][r][v];
#pragma GCC unroll 4
      for (int c = 1; c < C; ++c) total = Op::add(total, sum[c][r][v]);
      const int at = first * kFrozenLanes + v * kFrozenWidth;
      Op::finish(total, p, at, rows[r].scale).store(tile + r * G * kFrozenLanes + at);
    }
  }
}

// The same for all gates, in as few passes over the panel as the registers allow.
template <class Op, int G, int R>
__attribute__((noinline)) void multiply_frozen(const FrozenRow<typename Op::Value>* rows,
                                               const FrozenPanel& p, FrozenAhead& ahead,
                                               float* tile) {
  constexpr int kMost = kFrozenSums<Op> / (R * kParts);
  constexpr int kPasses = (G + kMost - 1) / kMost;
  for_each<kPasses>([&](auto i) {
    constexpr int kFirst = G * i / kPasses, kEnd = G * (i + 1) / kPasses;
    const char* const from = ahead.line < ahead.end ? ahead.line : p.weights;
    multiply_gates<Op, G, R, kEnd - kFirst>(rows, p, kFirst, from, tile);
    ahead.line += p.steps * kFrozenLine;
  });
}

#if FASTRNN_LEVEL >= 4
// A thread's tile registers: 0 to 3 have sums of a gate each, 4 rows and 5 weights of 16 steps; 6
// and 7 those of the last steps, if they are fewer. They are given back at the end.
class TileSetup {
 public:
  TileSetup() = default;
  TileSetup(const TileSetup&) = delete;
  ~TileSetup() {
    if (rows > 0) tiles::release();
  }

  FASTRNN_HD void prepare(int count, int last_steps) {
    if (rows == count && last == last_steps) return;
    rows = count;
    last = last_steps;
    TileConfig config;
    for (int sum = 0; sum < 4; ++sum) config.set(sum, count, 64);
    config.set(4, count, 64);
    config.set(5, 16, 64);
    if (last > 0) {
      config.set(6, count, 4 * last);
      config.set(7, last, 64);
    }
    tiles::configure(config);
  }

 private:
  int rows = 0, last = 0;
};

// As multiply_frozen, of `count` rows that lie equally far apart, 2 to 16.
template <class Op, int G>
__attribute__((noinline)) void multiply_in_tiles(int count,
                                                 const FrozenRow<typename Op::Value>* rows,
                                                 const FrozenPanel& p, TileSetup& setup,
                                                 float* tile) {
  static_assert(G <= 4 && kParts == 1);
  constexpr int64_t kStep = G * kFrozenLine;
  const char *row = (const char*)rows->values, *w = p.weights;
  const int64_t stride = (const char*)rows[1].values - row, last = p.steps % 16;
  setup.prepare(count, int(last));
  tiles::order_memory();
  for_each<G>([](auto g) { tiles::zero<g>(); });
  const auto add = [&](auto a, auto b) {
    tiles::load<a>(row, stride);
    for_each<G>([&](auto g) {
      tiles::load<b>(w + g * kFrozenLine, kStep);
      if constexpr (Op::kValues == 2) {
        tiles::add_bfloat16<g, a, b>();
      } else {
        tiles::add_bytes<g, a, b>();
      }
    });
  };
  for (int64_t s = 16; s <= p.steps; s += 16, row += 64, w += 16 * kStep)
    add(Index<4>(), Index<5>());
  if (last > 0) add(Index<6>(), Index<7>());
  for_each<G>([&](auto g) { tiles::store<g>(tile + g * kFrozenLanes, kStep); });
  tiles::order_memory();
  for (int r = 0; r < count; ++r, tile += G * kFrozenLanes) {
    for (int at = 0; at < G * kFrozenLanes; at += kFrozenLanes) {
      typename Op::Sum sum;
      __builtin_memcpy(&sum, tile + at, sizeof sum);
      Op::finish(sum, p, at, rows[r].scale).store(tile + at);
    }
  }
}
#else
struct TileSetup {};
#endif

// The same for `count` rows, which are at most frozen_rows<Op>(G) and lie equally far apart.
template <class Op, int G, int R = Op::kTiles ? 1 : frozen_rows<Op>(G)>
FASTRNN_HD void multiply_frozen_rows(int count, const FrozenRow<typename Op::Value>* rows,
                                     const FrozenPanel& panel, FrozenAhead& ahead, TileSetup& setup,
                                     float* tile) {
  if constexpr (R > 1) {
    if (count < R)
      return multiply_frozen_rows<Op, G, R - 1>(count, rows, panel, ahead, setup, tile);
  }
#if FASTRNN_LEVEL >= 4
  if constexpr (Op::kTiles) {
    if (count > 1) return multiply_in_tiles<Op, G>(count, rows, panel, setup, tile);
  }
#endif
  multiply_frozen<Op, G, R>(rows, panel, ahead, tile);
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
