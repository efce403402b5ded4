// A product whose weights stay on the chip for the whole sequence: in registers as far as they go,
// in shared memory beyond, both in the form in which a lane multiplies them. The other operand lies
// in shared memory and changes at every step.
#pragma once

#include "product.cuh"
#include "resident.h"

namespace fastrnn::cuda {

// Where the sum for a row is among the eight rows and eight units of an octet. In different banks
// lie the pairs of rows that half a warp writes, and every second unit of two rows in four octets.
FASTRNN_HD int octet_slot(int octet, int unit, int row) {
  const int odd = unit & 1;
  return odd * 32 + (unit >> 1 ^ odd * 2) * 8 + (row >> 1 ^ (octet & 3)) * 2 + (row & 1);
}

// The multiply-adds of a lane, whose four partial sums over a chunk are added at the end so that a
// lane holds the same two rows of eight as in a tensor core tile.
template <class Scalar, int kHalves, int kRows>
struct ReducedFmaTile : FmaTile<Scalar, kHalves, kRows> {
  __device__ __forceinline__ void reduce(int lane) {
    const bool upper = lane & 2, odd = lane & 1;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int n = 0; n < kRows; n += 8) {
        Scalar* v = this->sum[half] + n;
        Scalar four[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          four[i] = (upper ? v[i + 4] : v[i]) + shuffle_xor(upper ? v[i] : v[i + 4], 2);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          v[i] = (odd ? four[i + 2] : four[i]) + shuffle_xor(odd ? four[i] : four[i + 2], 1);
        }
      }
    }
  }
  FASTRNN_HD Pair pair(int half, int n) const {
    return {{this->sum[half][n * 8], this->sum[half][n * 8 + 1]}};
  }
  static FASTRNN_HD uint32_t operand(uint32_t word) { return word; }
  static FASTRNN_HD void pack(Quad (&)[kHalves]) {}
  static FASTRNN_HD void unpack(Quad (&)[kHalves]) {}
};

// Eight rows have registers for two chains.
template <class Scalar, int kHalves, int kRows>
struct RoundedMmaTile : MmaTile<Scalar, kHalves, kRows, true, kRows == 8 ? 2 : 1> {
  FASTRNN_HD Pair pair(int half, int n) const {
    const float* v = this->chains[0][half / 2][n] + half % 2 * 2;
    return {{v[0], v[1]}};
  }
  static FASTRNN_HD uint32_t operand(uint32_t word) {
    return MmaTile<Scalar, kHalves, kRows>::operand(word);
  }
  // Of two halves to the words of two products, and back. An operand takes four registers side by
  // side: so they come from memory in one load.
  static FASTRNN_HD void pack(Quad (&w)[kHalves]) {
#pragma unroll
    for (int h = 0; h + 1 < kHalves; h += 2) {
      const Quad low = w[h], high = w[h + 1];
      w[h] = {{low.word[0], high.word[0], low.word[1], high.word[1]}};
      w[h + 1] = {{low.word[2], high.word[2], low.word[3], high.word[3]}};
    }
  }
  static FASTRNN_HD void unpack(Quad (&w)[kHalves]) {
#pragma unroll
    for (int h = 0; h + 1 < kHalves; h += 2) {
      const Quad first = w[h], second = w[h + 1];
      w[h] = {{first.word[0], first.word[2], second.word[0], second.word[2]}};
      w[h + 1] = {{first.word[1], first.word[3], second.word[1], second.word[3]}};
    }
  }
};

template <class Scalar, int kRows, bool kTensorCores, ProductForm kForm>
class ResidentProduct {
  static constexpr int kHalves = kForm.halves;
  static constexpr int kRegGroups = kForm.reg_groups, kRegChunks = kForm.reg_chunks;
  // Of the other operand, chunks that are on their way to registers at a time.
  static constexpr int kAhead = kRows == 8 && kTensorCores ? 2 : 1;

 public:
  using Lane = std::conditional_t<kTensorCores, RoundedMmaTile<Scalar, kHalves, kRows>,
                                  ReducedFmaTile<Scalar, kHalves, kRows>>;
  static constexpr int kValues = sizeof(Quad) / sizeof(Scalar);
  static constexpr int kChunk = 4 * kValues;

  // row(group, half, unit of eight): where a row of weights begins, or null where there is none.
  // column(k): where in it the value k is, and kValues - 1 more, or below 0 beyond the last.
  template <class Row, class Column>
  __device__ __forceinline__ ResidentProduct(const ProductLayout& layout, Quad* shared, Row row,
                                             Column column)
      : lane_(threadIdx.x % kWarp) {
    const int warp = threadIdx.x / kWarp;
    const bool sliced = layout.groups < kResidentWarps;
    const int slice = sliced ? warp / layout.groups : 0;
    slice_ = slice;
    stride_ = sliced ? layout.groups : kResidentWarps;
    group_ = sliced ? warp % layout.groups : warp;
    groups_ = slice >= layout.slices || group_ >= layout.groups
                  ? 0
                  : (sliced ? 1 : (layout.groups - group_ + stride_ - 1) / stride_);
    chunk_ = slice * layout.chunks / layout.slices;
    chunks_ = (slice + 1) * layout.chunks / layout.slices - chunk_;
    beyond_ = layout.beyond(kForm);
    chunk_max_ = layout.chunk_max();
    rest_ = shared + warp * layout.warp_pieces(kForm) * kHalves * kWarp + lane_;

    const auto begin_of = [&](int g, int half) {
      return row(group_ + g * stride_, half, lane_ / 4);
    };
    const auto place_of = [&](int c) {
      return c < chunks_ ? column((chunk_ + c) * kChunk + lane_ % 4 * kValues) : -1;
    };
    const auto fetch = [](const Scalar* begin, int place) {
      return begin && place >= 0 ? *reinterpret_cast<const Quad*>(begin + place) : Quad{};
    };
    // Loads are in flight together: what they bring is touched only where all have been issued.
    int places[kRegChunks];
#pragma unroll
    for (int c = 0; c < kRegChunks; ++c) places[c] = place_of(c);
#pragma unroll
    for (int g = 0; g < kRegGroups; ++g) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const Scalar* begin = g < groups_ ? begin_of(g, half) : nullptr;
#pragma unroll
        for (int c = 0; c < kRegChunks; ++c) kept_[g][c][half] = fetch(begin, places[c]);
      }
    }
#pragma unroll 1
    for (int g = 0; g < groups_; ++g) {
      const Scalar* begins[kHalves];
#pragma unroll
      for (int half = 0; half < kHalves; ++half) begins[half] = begin_of(g, half);
#pragma unroll 4
      for (int c = g < kRegGroups ? kRegChunks : 0; c < chunks_; ++c) {
        const int place = place_of(c);
        Quad w[kHalves];
#pragma unroll
        for (int half = 0; half < kHalves; ++half) w[half] = as_operand(fetch(begins[half], place));
        Lane::pack(w);
#pragma unroll
        for (int half = 0; half < kHalves; ++half) piece(g, c)[half * kWarp] = w[half];
      }
    }
#pragma unroll
    for (int g = 0; g < kRegGroups; ++g) {
#pragma unroll
      for (int c = 0; c < kRegChunks; ++c) {
#pragma unroll
        for (int half = 0; half < kHalves; ++half)
          kept_[g][c][half] = as_operand(kept_[g][c][half]);
      }
    }
  }

  // operand: kRows rows, `stride` sixteen-byte words apart. visit(slice, group, half, n, lane's
  // unit, lane's pair of eight rows, Pair) gets every sum, n counting the rows by eight.
  template <class Visit>
  __device__ __forceinline__ void run(const Quad* operand, int stride, Visit visit) const {
    const Quad* mine = operand + Lane::lane_row(0, lane_) * stride + chunk_ * 4 + lane_ % 4;
    const auto input = [&](int c, Quad(&x)[Lane::kLaneRows]) {
#pragma unroll
      for (int i = 0; i < Lane::kLaneRows; ++i) {
        x[i] = mine[(Lane::lane_row(i, 0) - Lane::lane_row(0, 0)) * stride + c * 4];
      }
    };
    const auto from_shared = [&](Lane& sum, int g, int c) {
      Quad w[kHalves], x[Lane::kLaneRows];
#pragma unroll
      for (int half = 0; half < kHalves; ++half) w[half] = piece(g, c)[half * kWarp];
      Lane::unpack(w);
      input(c, x);
      sum.multiply(w, x);
    };
    const auto finish = [&](Lane& sum, int g) {
      sum.reduce(lane_);
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
#pragma unroll
        for (int n = 0; n < kRows / 8; ++n) {
          visit(slice_, group_ + g * stride_, half, n, lane_ / 4, lane_ % 4, sum.pair(half, n));
        }
      }
    };
#pragma unroll
    for (int g = 0; g < kRegGroups; ++g) {
      if (g < groups_) {
        Lane sum;
        Quad x[kAhead][Lane::kLaneRows];
        if constexpr (kAhead > 1) input(0, x[0]);
#pragma unroll
        for (int c = 0; c < kRegChunks; ++c) {
          if (kAhead > 1 && c + 1 < kRegChunks && c + 1 < chunks_)
            input(c + 1, x[(c + 1) % kAhead]);
          if (c < chunks_) {
            if constexpr (kAhead == 1) input(c, x[0]);
            sum.multiply(kept_[g][c], x[c % kAhead]);
          }
        }
#pragma unroll 1
        for (int c = kRegChunks; c < chunks_; ++c) from_shared(sum, g, c);
        finish(sum, g);
      }
    }
#pragma unroll 1
    for (int g = kRegGroups; g < groups_; ++g) {
      Lane sum;
#pragma unroll 1
      for (int c = 0; c < chunks_; ++c) from_shared(sum, g, c);
      finish(sum, g);
    }
  }

 private:
  __device__ __forceinline__ Quad* piece(int g, int c) const {
    const int at = g < kRegGroups ? g * beyond_ + c - kRegChunks
                                  : kRegGroups * beyond_ + (g - kRegGroups) * chunk_max_ + c;
    return rest_ + at * kHalves * kWarp;
  }

  static __device__ __forceinline__ Quad as_operand(Quad quad) {
#pragma unroll
    for (uint32_t& word : quad.word) word = Lane::operand(word);
    return quad;
  }

  int lane_, slice_, group_, groups_, stride_, chunk_, chunks_, beyond_, chunk_max_;
  Quad* rest_;
  Quad kept_[kRegGroups][kRegChunks][kHalves];
};

}  // namespace fastrnn::cuda
