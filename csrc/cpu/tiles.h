// bfloat16 products on the matrix unit of x86 CPUs: one instruction multiplies 16 rows of 32 k with
// 32 k of 16 columns.
//
// Panels are those of PairedBfloat16, padded to 32 k: 16 pairs of k of one vector are a tile as
// they stand. The rows come from the copy in Rows, whose stride keeps them out of each other's
// cache sets. Tiles 0 to 3 hold sums.
#pragma once

#include "product.h"
#include "tile_registers.h"

namespace fastrnn::cpu::FASTRNN_ISA {

#if FASTRNN_LEVEL >= 4  // has tiles
struct TiledBfloat16 : PairedBfloat16 {
  static constexpr int kPadding = 32, kMaxRows = 32;
  static constexpr bool kTiles = true;
};
using Bfloat16Operand = TiledBfloat16;

// Up to 16 rows: tile 4 has them, tiles 5 to 7 weights. More: tiles 4 and 5 have the two halves and
// sums 0 and 1 belong to the first.
FASTRNN_HD void configure_tiles(int count) {
  const bool two = count > 16;
  const int first = two ? (count + 1) / 2 : count, second = two ? count - first : count;
  const int rows[8] = {first, first, second, second, first, two ? second : 16, 16, 16};
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) config.set(tile, rows[tile], 64);
  tiles::configure(config);
}

// Where the operands of a product lie; strides in bytes. The sums start from `init`, one row for
// all of them where its stride is 0.
struct TileOperands {
  const char *a, *b;
  int64_t depth, a_stride, b_stride;
  const float* init;
  int64_t init_stride;
  float* sums;
  int64_t sum_stride;
};

template <int kVecs>
FASTRNN_HD void multiply_one_tile(const TileOperands& o) {
  for_each<kVecs>([&](auto v) { tiles::load<v>(o.init + 16 * v, o.init_stride); });
  const char *a = o.a, *b = o.b;
  for (int64_t k = 0; k < o.depth; k += 32, a += 64, b += 16 * o.b_stride) {
    tiles::load<4>(a, o.a_stride);
    for_each<kVecs>([&](auto v) {
      constexpr int kWeights = 5 + v % 3;
      tiles::load<kWeights>(b + 64 * v, o.b_stride);
      tiles::add_bfloat16<v, 4, kWeights>();
    });
  }
  for_each<kVecs>([&](auto v) { tiles::store<v>(o.sums + 16 * v, o.sum_stride); });
}

FASTRNN_HD float* moved(const float* p, int64_t bytes) { return (float*)((char*)p + bytes); }

// The first half has `above` rows.
template <int kVecs>
FASTRNN_HD void multiply_two_tiles(const TileOperands& o, int above) {
  const float* const init = moved(o.init, above * o.init_stride);
  for_each<kVecs>([&](auto v) {
    tiles::load<v>(o.init + 16 * v, o.init_stride);
    tiles::load<2 + v>(init + 16 * v, o.init_stride);
  });
  const char *a = o.a, *b = o.b;
  const int64_t half = above * o.a_stride;
  for (int64_t k = 0; k < o.depth; k += 32, a += 64, b += 16 * o.b_stride) {
    tiles::load<4>(a, o.a_stride);
    for_each<kVecs>([&](auto v) {
      tiles::load<6 + v>(b + 64 * v, o.b_stride);
      tiles::add_bfloat16<v, 4, 6 + v>();
      if constexpr (v == 0) tiles::load<5>(a + half, o.a_stride);
      tiles::add_bfloat16<2 + v, 5, 6 + v>();
    });
  }
  float* const sums = moved(o.sums, above * o.sum_stride);
  for_each<kVecs>([&](auto v) {
    tiles::store<v>(o.sums + 16 * v, o.sum_stride);
    tiles::store<2 + v>(sums + 16 * v, o.sum_stride);
  });
}

template <int kVecs>
void multiply_tiles(const TileOperands& o, int count) {
  if (count <= 16) return multiply_one_tile<kVecs>(o);
  const int above = (count + 1) / 2;
  multiply_two_tiles<(kVecs > 1 ? 2 : 1)>(o, above);
  if constexpr (kVecs > 2) {
    TileOperands right = o;
    right.b += 128;
    right.init += 32;
    right.sums += 32;
    multiply_two_tiles<kVecs - 2>(right, above);
  }
}

template <int kVecs>
void multiply_strided(const Rows<TiledBfloat16>& rows, int64_t first, int count,
                      const Bfloat16* panel, const Sums<TiledBfloat16>& sums,
                      const char* /*ahead*/) {
  if (*rows.tile_rows != count) configure_tiles(*rows.tile_rows = count);
  const TileOperands o{(const char*)(rows.copy + first * rows.stride),
                       (const char*)panel,
                       rows.depth,
                       rows.stride * int64_t(sizeof(Bfloat16)),
                       kVecs * 64,
                       sums.add ? sums.out : sums.init,
                       sums.add ? sums.stride * int64_t(sizeof(float)) : 0,
                       sums.out,
                       sums.stride * int64_t(sizeof(float))};
  tiles::order_memory();
  multiply_tiles<kVecs>(o, count);
  tiles::order_memory();
}
#elif FASTRNN_LEVEL == 3
using Bfloat16Operand = PairedBfloat16;
#else
using Bfloat16Operand = Plain<Bfloat16>;
#endif

// Gives the tile registers back at the end of a thread's work.
template <class Op>
FASTRNN_HD void release_tiles() {
#if FASTRNN_LEVEL >= 4
  if constexpr (Op::kTiles) tiles::release();
#endif
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
