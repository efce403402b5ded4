// Packing of weights into panels (product.h), and the same products from weights that are not
// packed, for calls too short to pay for it.
#pragma once

#include "product.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// The columns of one panel: vector v covers the columns first[v] .. first[v] + valid - 1.
struct Columns {
  int vecs;
  int64_t first[kMaxVecs];
  int64_t valid[kMaxVecs];  // of kLanes; the other lanes are zero in the panel
};

// Units in blocks of `unit_vecs` vectors; the last block may have fewer.
struct Blocks {
  int64_t units, lanes;
  int unit_vecs, gates;

  FASTRNN_HD int64_t unit_vectors() const { return (units + lanes - 1) / lanes; }
  FASTRNN_HD int64_t count() const { return (unit_vectors() + unit_vecs - 1) / unit_vecs; }
  FASTRNN_HD int64_t padded() const { return unit_vectors() * lanes; }
  FASTRNN_HD int vecs(int64_t block) const {
    return int(smaller(unit_vecs, unit_vectors() - block * unit_vecs));
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

// Element (k, column) of the source is w[k * k_stride + column * column_stride].
template <class Op>
void pack_panel(const typename Op::Storage* w, int64_t depth, int64_t k_stride,
                int64_t column_stride, const Columns& c, typename Op::Packed* panel) {
  constexpr int kStep = kLanes<Op> * Op::kDepth;
  constexpr int64_t kTile = 256;  // of k, so that the lines being filled stay in the first cache
  const int64_t padded = panel_size<Op>(depth, 1) / kLanes<Op>;
  const int64_t step = int64_t(c.vecs) * kStep;
  for (int v = 0; v < c.vecs; ++v) {
    typename Op::Packed* out = panel + v * kStep;
    const typename Op::Storage* in = w + c.first[v] * column_stride;
    for (int64_t k0 = 0; k0 < padded; k0 += kTile) {
      const int64_t k1 = smaller(k0 + kTile, padded);
      if (column_stride == 1) {
        for (int64_t k = k0; k < k1; ++k) {
          typename Op::Packed* row = out + k / Op::kDepth * step + k % Op::kDepth;
          const int64_t valid = k < depth ? c.valid[v] : 0;
          for (int64_t lane = 0; lane < valid; ++lane) {
            row[lane * Op::kDepth] = Op::pack(in[k * k_stride + lane]);
          }
          for (int64_t lane = valid; lane < kLanes<Op>; ++lane) row[lane * Op::kDepth] = {};
        }
      } else {
        for (int64_t lane = 0; lane < kLanes<Op>; ++lane) {
          const typename Op::Storage* column = in + lane * column_stride;
          for (int64_t k = k0; k < k1; ++k) {
            const bool there = lane < c.valid[v] && k < depth;
            out[k / Op::kDepth * step + lane * Op::kDepth + k % Op::kDepth] =
                there ? Op::pack(column[k * k_stride]) : typename Op::Packed{};
          }
        }
      }
    }
  }
}

template <class A>
FASTRNN_HD A sum_of_lanes(Vec<A> x) {
  A lanes[Vec<A>::kWidth];
  x.store(lanes);
  for (int half = Vec<A>::kWidth / 2; half > 0; half /= 2) {
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
