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

template <class A, bool C>
FASTRNN_HD A sum_of_lanes(Vec<A, C> x) {
  A lanes[Vec<A, C>::kWidth];
  x.store(lanes);
  for (int half = Vec<A, C>::kWidth / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// tile[r][v] = init[v] + rows[r] . column, each column of the weights contiguous over k.
template <class S>
void multiply_unpacked(int count, const S* const* rows, int64_t depth, const S* w, const Columns& c,
                       const Accumulate<S>* init, Accumulate<S>* tile) {
  using V = VecOf<S>;
  constexpr int kWidth = V::kWidth, kTogether = 4;
  for (int v = 0; v < c.vecs; ++v) {
    for (int r = 0; r < count; ++r) {
      Accumulate<S>* out = tile + (r * c.vecs + v) * kWidth;
      for (int lane = 0; lane < kWidth; ++lane) out[lane] = init[v * kWidth + lane];
      for (int64_t lane = 0; lane < c.valid[v]; lane += kTogether) {
        const S* column[kTogether];
        V sum[kTogether];
#pragma GCC unroll 4
        for (int i = 0; i < kTogether; ++i) {
          column[i] = w + (c.first[v] + smaller(lane + i, c.valid[v] - 1)) * depth;
          sum[i] = V(0);
        }
        for (int64_t k = 0; k < depth; k += kWidth) {
          const int64_t here = depth - k;
          const V a = load(rows[r] + k, here);
#pragma GCC unroll 4
          for (int i = 0; i < kTogether; ++i) {
            sum[i] = multiply_add(a, load(column[i] + k, here), sum[i]);
          }
        }
        for (int i = 0; i < kTogether && lane + i < c.valid[v]; ++i) {
          out[lane + i] += sum_of_lanes(sum[i]);
        }
      }
    }
  }
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
