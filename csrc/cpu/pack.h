// Packing of weights into panels (product.h), and the same products from weights that are not
// packed, for calls too short to pay for it.
#pragma once

#include "tiles.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// The columns of one panel: vector v covers the columns first[v] .. first[v] + valid - 1.
struct Columns {
  int vecs;
  int64_t first[kMaxVecs];
  int64_t valid[kMaxVecs];  // of kLanes; the other lanes are zero in the panel
};

// Units in blocks of `unit_vecs` vectors; the last block may have fewer.
class Blocks {
 public:
  Blocks(int64_t units, int64_t lanes, int unit_vecs, int gates)
      : units(units),
        lanes(lanes),
        unit_vecs(unit_vecs),
        gates(gates),
        unit_vectors((units + lanes - 1) / lanes),
        count((unit_vectors + unit_vecs - 1) / unit_vecs) {}

  const int64_t units, lanes;
  const int unit_vecs, gates;
  const int64_t unit_vectors, count;

  FASTRNN_HD int64_t padded() const { return unit_vectors * lanes; }
  FASTRNN_HD int vecs(int64_t block) const {
    return int(smaller(unit_vecs, unit_vectors - block * unit_vecs));
  }
  FASTRNN_HD int64_t unit(int64_t block, int u) const { return (block * unit_vecs + u) * lanes; }
  // All gates of the block's units side by side: vector g * vecs + u holds gate g of vector u.
  FASTRNN_HD Columns columns(int64_t block) const {
    Columns c;
    const int n = vecs(block);
    c.vecs = gates * n;
    for (int g = 0; g < gates; ++g) {
      for (int u = 0; u < n; ++u) {
        c.first[g * n + u] = g * units + unit(block, u);
        c.valid[g * n + u] = smaller(lanes, units - unit(block, u));
      }
    }
    return c;
  }
  // Where the block starts in arrays that hold `depth` vectors for each vector of all blocks.
  FASTRNN_HD int64_t offset(int64_t block) const { return block * unit_vecs * gates * lanes; }
};

// A square of vectors, rows to columns. Each round interleaves the first half of the rows with the
// second, which rotates the bits of every element's place by one.
template <class V>
FASTRNN_HD void transpose(V* rows) {
  constexpr int kWidth = V::kWidth;
  typename V::Bits low, high;
  for (int i = 0; i < kWidth; ++i) {
    low[i] = i / 2 + i % 2 * kWidth;
    high[i] = low[i] + kWidth / 2;
  }
#pragma GCC unroll 4
  for (int round = 1; round < kWidth; round *= 2) {
    V next[kWidth];
#pragma GCC unroll 8
    for (int i = 0; i < kWidth / 2; ++i) {
      next[2 * i] = V(__builtin_shuffle(rows[i].v, rows[i + kWidth / 2].v, low));
      next[2 * i + 1] = V(__builtin_shuffle(rows[i].v, rows[i + kWidth / 2].v, high));
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) rows[i] = next[i];
  }
}

// One vector of a panel from weights whose columns are contiguous over k, `column_stride` apart.
template <class Op>
FASTRNN_HD void pack_columns(const typename Op::Storage* w, int64_t depth, int64_t column_stride,
                             int64_t valid, int64_t step, typename Op::Packed* out) {
  using V = VecOf<typename Op::Storage>;
  constexpr int64_t kSquare = int64_t(V::kWidth) * Op::kDepth;
  const int64_t padded = padded_depth<Op>(depth);
  for (int64_t k = 0; k < padded; k += kSquare) {
    V square[V::kWidth];
    for (int lane = 0; lane < V::kWidth; ++lane) {
      square[lane] = lane < valid ? Op::load_steps(w + lane * column_stride + k, depth - k) : V(0);
    }
    transpose(square);
    const int64_t steps = smaller(V::kWidth, (padded - k) / Op::kDepth);
    for (int64_t i = 0; i < steps; ++i) {
      square[i].store((Accumulate<typename Op::Storage>*)(out + (k / Op::kDepth + i) * step));
    }
  }
}

// The same from weights whose rows are contiguous over the columns, `k_stride` apart.
template <class Op>
FASTRNN_HD void pack_rows(const typename Op::Storage* w, int64_t depth, int64_t k_stride,
                          int64_t valid, int64_t step, typename Op::Packed* out) {
  const int64_t padded = padded_depth<Op>(depth);
  for (int64_t k = 0; k < padded; k += Op::kDepth, out += step) {
    Op::merge_rows(w + k * k_stride, k_stride, depth - k, valid)
        .store((Accumulate<typename Op::Storage>*)out);
  }
}

// Element (k, column) of the source is w[k * k_stride + column * column_stride]; one of the strides
// is 1.
template <class Op>
void pack_panel(const typename Op::Storage* w, int64_t depth, int64_t k_stride,
                int64_t column_stride, const Columns& c, typename Op::Packed* panel) {
  constexpr int64_t kVector = kLanes<Op> * Op::kDepth;
  for (int v = 0; v < c.vecs; ++v) {
    const typename Op::Storage* in = w + c.first[v] * column_stride;
    typename Op::Packed* out = panel + v * kVector;
    if (k_stride == 1) {
      pack_columns<Op>(in, depth, column_stride, c.valid[v], c.vecs * kVector, out);
    } else {
      pack_rows<Op>(in, depth, k_stride, c.valid[v], c.vecs * kVector, out);
    }
  }
}

// out[i] = the sum of the lanes of x[i], for four vectors.
template <class A, bool C>
FASTRNN_HD void sum_four(const Vec<A, C>* x, A* out) {
  for (int i = 0; i < 4; ++i) out[i] = sum_of_lanes(x[i]);
}
#if FASTRNN_LEVEL >= 2
FASTRNN_HD __m512d sum_of_pairs(__m512 a, __m512 b) {
  return _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
}
// In the registers: each step leaves half as many partial sums of every vector, side by side.
template <bool C>
FASTRNN_HD void sum_four(const Vec<float, C>* x, float* out) {
  const __m512d ab = sum_of_pairs((__m512)x[0].v, (__m512)x[1].v);
  const __m512d cd = sum_of_pairs((__m512)x[2].v, (__m512)x[3].v);
  const __m512 four = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
                                    _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(four), _mm512_extractf32x8_ps(four, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
#elif FASTRNN_LEVEL == 1
template <bool C>
FASTRNN_HD void sum_four(const Vec<float, C>* x, float* out) {
  const __m256 ab = _mm256_hadd_ps((__m256)x[0].v, (__m256)x[1].v);
  const __m256 cd = _mm256_hadd_ps((__m256)x[2].v, (__m256)x[3].v);
  const __m256 four = _mm256_hadd_ps(ab, cd);
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1)));
}
#endif

// What a pass over some columns brings nearer meanwhile: with each vector of k, `step` bytes from
// `from` on. One column is too short for the hardware's prefetcher.
struct ColumnsAhead {
  const char* from;
  int64_t step;
};

// The products of kRows rows with up to kColumns columns of the weights, each contiguous over k.
// Each value that is loaded serves a whole row or column of the sums. kPasses: the rows meet the
// columns in one pass, or in two and more, which share what they bring nearer; 0 brings nothing.
template <class S, int kRows, int kColumns, int kPasses>
__attribute__((noinline)) void multiply_columns(const S* const* rows, int64_t depth, const S* w,
                                                int valid, ColumnsAhead ahead, Accumulate<S>* tile,
                                                int64_t stride) {
  using V = VecOf<S>;
  constexpr int kWidth = V::kWidth;
  constexpr int kBytes = kPasses > 0 ? kColumns * kWidth * sizeof(S) / kPasses : 0;
  const S* column[kColumns];
#pragma GCC unroll 8
  for (int i = 0; i < kColumns; ++i) column[i] = w + (i < valid ? i : valid - 1) * depth;
  V sum[kRows][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < kColumns; ++i) sum[r][i] = V(0);
  }
  const auto add = [&](const auto& load_at) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int at = 0; at < kBytes; at += kLine) __builtin_prefetch(ahead.from + at, 0, 2);
    ahead.from += ahead.step;
    add_products<kRows, kColumns>(
        sum, [&](int r) { return load_at(rows[r]); }, [&](int i) { return load_at(column[i]); });
  };
  int64_t k = 0;
  for (; k + kWidth <= depth; k += kWidth) add([&](const S* p) { return Storage<S>::load(p + k); });
  if (k < depth) add([&](const S* p) { return load(p + k, depth - k); });
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int first = 0; first < kColumns; first += 4) {
      Accumulate<S> four[4], *const to = tile + r * stride + first;
      sum_four(sum[r] + first, four);
      if (first + 4 <= valid) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) four[i] += to[i];
        __builtin_memcpy(to, four, sizeof four);
      } else {
        for (int i = 0; first + i < valid; ++i) to[i] += four[i];
      }
    }
  }
}

// As many rows as keep all sums with four columns in registers, and with eight where they do.
constexpr int kUnpackedRows = kVectorRegisters > 16 ? 6 : 3, kRowsOfEight = 3;

// The products of `count` rows, at most kRows, with kColumns columns.
template <class S, int kColumns, int kPasses,
          int kRows = kColumns == 8 ? kRowsOfEight : kUnpackedRows>
FASTRNN_HD void add_unpacked(int count, const S* const* rows, int64_t depth, const S* w, int valid,
                             ColumnsAhead ahead, Accumulate<S>* tile, int64_t stride) {
  if constexpr (kRows > 1) {
    if (count < kRows)
      return add_unpacked<S, kColumns, kPasses, kRows - 1>(count, rows, depth, w, valid, ahead,
                                                           tile, stride);
  }
  multiply_columns<S, kRows, kColumns, kPasses>(rows, depth, w, valid, ahead, tile, stride);
}

// tile[r][v] = init[v] + rows[r] . column, each column of the weights contiguous over k. Some
// columns meet all rows before the next come. kFar: the weights are in a far cache, and all passes
// over the rows bring the next columns nearer.
template <class S, bool kFar>
void multiply_unpacked(int count, const S* const* rows, int64_t depth, const S* w, const Columns& c,
                       const Accumulate<S>* init, Accumulate<S>* tile) {
  constexpr int kWidth = VecOf<S>::kWidth;
  const int64_t stride = c.vecs * kWidth;
  for (int r = 0; r < count; ++r) {
    for (int64_t i = 0; i < stride; ++i) tile[r * stride + i] = init[i];
  }
  const int passes = (count + kUnpackedRows - 1) / kUnpackedRows;
  const auto run = [&](auto columns) {
    constexpr int64_t kBytes = columns * int64_t(sizeof(S));
    for (int v = 0; v < c.vecs; ++v) {
      for (int64_t lane = 0; lane < c.valid[v]; lane += columns) {
        const S* const from = w + (c.first[v] + lane) * depth;
        const int valid = int(smaller(columns, c.valid[v] - lane));
        ColumnsAhead ahead{(const char*)(from + columns * depth), kBytes * kWidth / passes};
        for (int left = passes, r = 0; left > 0; --left) {
          const int some = (count - r + left - 1) / left;
          Accumulate<S>* const to = tile + r * stride + v * kWidth + lane;
          const auto add = !kFar         ? add_unpacked<S, columns, 0>
                           : passes == 1 ? add_unpacked<S, columns, 1>
                                         : add_unpacked<S, columns, 2>;
          add(some, rows + r, depth, from, valid, ahead, to, stride);
          ahead.from += kBytes * depth / passes;
          r += some;
        }
      }
    }
  };
  if constexpr (kVectorRegisters > 16 && kWidth > 4) {
    if (count <= passes * kRowsOfEight) return run(Index<8>());
  }
  run(Index<4>());
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
