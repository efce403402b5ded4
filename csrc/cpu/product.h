// Matrix products of a few rows with a panel of packed weights, the inner loops of everything here.
//
// An operand says how values meet: Plain<S> multiplies one k at a time in the accumulate type;
// PairedBfloat16 takes two at a time with the CPU's bfloat16 dot product; TiledBfloat16 (tiles.h)
// takes 32 with its matrix unit. A panel holds, for each step of k, the kVecs vectors of weights of
// one block of columns.
#pragma once

#include "storage.h"

namespace fastrnn::cpu::FASTRNN_ISA {

constexpr int kMaxVecs = 4;    // vectors of columns in a panel
constexpr int64_t kLine = 64;  // bytes of a cache line

template <class S>
struct Plain {
  using Storage = S;
  using Packed = Accumulate<S>;
  using Row = Accumulate<S>;             // of the left side, as it is multiplied
  static constexpr int kDepth = 1;       // values of k per step
  static constexpr int kPadding = 1;     // panels are filled with zeros to a multiple of so many k
  static constexpr int kMaxRows = 8;     // rows that one call of multiply() may take
  static constexpr bool kTiles = false;  // whether a matrix unit multiplies

  // Weights of one column for a vector of steps of k; those past the first `count` k are 0.
  static FASTRNN_HD VecOf<S> load_steps(const S* column, int64_t count) {
    return load(column, count);
  }
  // Weights of one step of k for a vector of columns, of which the first `valid` are there.
  static FASTRNN_HD VecOf<S> merge_rows(const S* row, int64_t /*stride*/, int64_t /*count*/,
                                        int64_t valid) {
    return load(row, valid);
  }
  static FASTRNN_HD VecOf<S> spread(const Row* row, int64_t k) { return VecOf<S>(row[k]); }
  static FASTRNN_HD VecOf<S> spread_last(const Row* row, int64_t k) { return spread(row, k); }
  static FASTRNN_HD VecOf<S> fma(VecOf<S> a, const Packed* w, VecOf<S> sum) {
    return multiply_add(a, VecOf<S>::load(w), sum);
  }
};

#if FASTRNN_LEVEL >= 3  // has the bfloat16 instructions
struct PairedBfloat16 {
  using Storage = Bfloat16;
  using Packed = Bfloat16;
  using Row = Bfloat16;
  static constexpr int kDepth = 2, kPadding = 2, kMaxRows = 8;
  static constexpr bool kTiles = false;
  using V = VecOf<Bfloat16>;
  typedef uint32_t Unsigned __attribute__((vector_size(kVectorBytes)));

  static FASTRNN_HD V load_steps(const Bfloat16* column, int64_t count) {
    constexpr int64_t kValues = 2 * V::kWidth;
    if (count >= kValues) return V((V::Raw)_mm512_loadu_si512(column));
    Bfloat16 values[kValues] = {};
    if (count > 0) __builtin_memcpy(values, column, count * sizeof(Bfloat16));
    return V((V::Raw)_mm512_loadu_si512(values));
  }
  static FASTRNN_HD V merge_rows(const Bfloat16* row, int64_t stride, int64_t count,
                                 int64_t valid) {
    // A widened bfloat16 has its bits at the top.
    const V first = count > 0 ? load(row, valid) : V(0);
    const V second = count > 1 ? load(row + stride, valid) : V(0);
    return V((V::Raw)((V::Bits)second.v | (V::Bits)((Unsigned)first.v >> 16)));
  }
  static FASTRNN_HD V spread(const Bfloat16* row, int64_t k) {
    uint32_t pair;
    __builtin_memcpy(&pair, row + k, sizeof pair);
    return V((V::Raw)_mm512_set1_epi32(int(pair)));
  }
  // The last value of an odd row; its partner in the panel is 0.
  static FASTRNN_HD V spread_last(const Bfloat16* row, int64_t k) {
    return V((V::Raw)_mm512_set1_epi32(row[k].bits));
  }
  static FASTRNN_HD V fma(V a, const Packed* w, V sum) {
    return V((V::Raw)_mm512_dpbf16_ps((__m512)sum.v, (__m512bh)a.v,
                                      (__m512bh)_mm512_loadu_ps((const float*)w)));
  }
};
#endif

template <class Op>
constexpr int kLanes = VecOf<typename Op::Storage>::kWidth;

template <class Op>
FASTRNN_HD int64_t padded_depth(int64_t depth) {
  return (depth + Op::kPadding - 1) / Op::kPadding * Op::kPadding;
}

// Elements of a panel of `vecs` vectors over `depth` values of k.
template <class Op>
FASTRNN_HD int64_t panel_size(int64_t depth, int64_t vecs) {
  return padded_depth<Op>(depth) * vecs * kLanes<Op>;
}

// Whether a product takes its rows from a copy: side by side for tiles, or widened once instead of
// by every panel.
template <class Op>
constexpr bool kCopiesRows = Op::kTiles || !std::is_same_v<typename Op::Row, typename Op::Storage>;

// The left side of products: rows of `depth` values that many panels are multiplied with.
template <class Op>
struct Rows {
  using S = typename Op::Storage;
  using Row = typename Op::Row;
  const S** row;  // where each row is
  int64_t depth;
  Row* copy = nullptr;       // where kCopiesRows: the rows, padded with zeros and `stride` apart
  int64_t stride = 0;        // 0: no copies, for weights that are not packed
  int* tile_rows = nullptr;  // where Op::kTiles: the rows for which the thread's tiles are set up

  FASTRNN_HD void set(int64_t i, const S* from) {
    row[i] = from;
    if constexpr (kCopiesRows<Op>) {
      Row* const to = copy + i * stride;
      if (stride == 0) return;
      if constexpr (Op::kTiles) {
        __builtin_memcpy(to, from, depth * sizeof(S));
        __builtin_memset(to + depth, 0, (padded_depth<Op>(depth) - depth) * sizeof(S));
      } else {  // whole vectors: a stride is a multiple of them
        for (int64_t k = 0; k < depth; k += kLanes<Op>) load(from + k, depth - k).store(to + k);
      }
    }
  }

  // A row as it is multiplied.
  FASTRNN_HD const Row* operator[](int64_t i) const {
    if constexpr (kCopiesRows<Op>)
      return copy + i * stride;
    else
      return row[i];
  }
};

// As many rows as keep all sums, a row of weights and a broadcast value in registers.
template <class Op>
constexpr int row_limit(int vecs) {
  const int fit = (kVectorRegisters - (kVectorRegisters > 16 ? 6 : 3)) / vecs;
  return Op::kTiles || fit > Op::kMaxRows ? Op::kMaxRows : fit;
}

// Where the rows of a product go, `stride` values apart, and what they begin with.
template <class Op>
struct Sums {
  using A = Accumulate<typename Op::Storage>;
  const A* init;  // the same for every row
  A* out;
  int64_t stride;
  bool add;  // to what is in `out`, at the end
};

// out[r][v] = init[v] + sum over k of rows[first + r][k] * panel[k][v]; with each step of k a line
// from `ahead` on comes nearer. Each run of k has sums of its own: shorter sums, smaller error.
template <class Op, int kRows, int kVecs>
__attribute__((noinline)) void multiply_block(const Rows<Op>& rows, int64_t first_row,
                                              const typename Op::Packed* panel,
                                              const Sums<Op>& sums, const char* ahead) {
  using S = typename Op::Storage;
  using V = VecOf<S>;
  constexpr int kStep = kVecs * kLanes<Op> * Op::kDepth;
  constexpr int64_t kRun = 512;
  // Few sums would wait for each other: keep two of each then.
  constexpr int kChains = kRows * kVecs < 8 ? 2 : 1;
  const typename Op::Row* row[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) row[r] = rows[first_row + r];
  const int64_t depth = rows.depth;
  int64_t k = 0, end;
  do {  // once at least: without inputs the sums are what they begin with
    end = smaller(depth, k + kRun);
    const int64_t first = k, whole = end - (end - k) % (Op::kDepth * kChains);
    V sum[kChains][kRows][kVecs];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        sum[0][r][v] = first == 0 ? V::load(sums.init + v * kLanes<Op>) : V(0);
        if constexpr (kChains == 2) sum[1][r][v] = V(0);
      }
    }
    for (; k < whole; k += Op::kDepth * kChains) {
#pragma GCC unroll 2
      for (int c = 0; c < kChains; ++c) {
        __builtin_prefetch(ahead, 0, 2);
        ahead += kLine;
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const V a = Op::spread(row[r], k + c * Op::kDepth);
#pragma GCC unroll 4
          for (int v = 0; v < kVecs; ++v) {
            sum[c][r][v] = Op::fma(a, panel + v * kLanes<Op> * Op::kDepth, sum[c][r][v]);
          }
        }
        panel += kStep;
      }
    }
    for (; k < end; k += Op::kDepth) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const V a = k + Op::kDepth <= depth ? Op::spread(row[r], k) : Op::spread_last(row[r], k);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          sum[0][r][v] = Op::fma(a, panel + v * kLanes<Op> * Op::kDepth, sum[0][r][v]);
        }
      }
      panel += kStep;
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        Accumulate<S>* const out = sums.out + r * sums.stride + v * kLanes<Op>;
        if constexpr (kChains == 2) sum[0][r][v] = sum[0][r][v] + sum[1][r][v];
        if (first > 0 || sums.add) sum[0][r][v] = sum[0][r][v] + V::load(out);
        sum[0][r][v].store(out);
      }
    }
  } while ((k = end) < depth);
}

template <class Op, int kVecs, int kRows = row_limit<Op>(kVecs)>
FASTRNN_HD void multiply_rows(const Rows<Op>& rows, int64_t first, int count,
                              const typename Op::Packed* panel, const Sums<Op>& sums,
                              const char* ahead) {
  if constexpr (kRows > 1) {
    if (count < kRows)
      return multiply_rows<Op, kVecs, kRows - 1>(rows, first, count, panel, sums, ahead);
  }
  multiply_block<Op, kRows, kVecs>(rows, first, panel, sums, ahead);
}

// out = init + rows[first + r] . panel[v] for `count` rows, at most row_limit(kVecs).
template <int kVecs, class Op>
FASTRNN_HD void multiply_strided(const Rows<Op>& rows, int64_t first, int count,
                                 const typename Op::Packed* panel, const Sums<Op>& sums,
                                 const char* ahead) {
  multiply_rows<Op, kVecs>(rows, first, count, panel, sums, ahead);
}

// tile[r][v] = init[v] + rows[first + r] . panel[v] for `count` rows, at most row_limit(vecs), and
// 1 .. kMaxVecs vectors. Meanwhile a part of what lies at `next` is fetched, another part for each
// group of rows that begins at `first`.
template <class Op>
void multiply(const Rows<Op>& rows, int64_t first, int count, int vecs,
              const typename Op::Packed* panel, const Accumulate<typename Op::Storage>* init,
              Accumulate<typename Op::Storage>* tile, const typename Op::Packed* next) {
  const int64_t part = first / count;
  const char* const ahead =
      part < vecs ? (const char*)next + part * (padded_depth<Op>(rows.depth) / Op::kDepth) * kLine
                  : (const char*)panel;
  const Sums<Op> sums{init, tile, vecs * kLanes<Op>, false};
  switch (vecs) {
    case 1:
      return multiply_strided<1>(rows, first, count, panel, sums, ahead);
    case 2:
      return multiply_strided<2>(rows, first, count, panel, sums, ahead);
    case 3:
      return multiply_strided<3>(rows, first, count, panel, sums, ahead);
    default:
      return multiply_strided<4>(rows, first, count, panel, sums, ahead);
  }
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
