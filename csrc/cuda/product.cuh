// The matrix product of a fused step: input rows times weight rows, a dot product over K for each
// pair, for one tile of kRows batch rows by kHalves groups of eight weight rows.
//
// Both operands lie in memory with K contiguous, so nothing is staged: a lane loads sixteen bytes
// of a row straight into registers. K is dealt out in chunks of four lanes, chunk after chunk to
// warp after warp, which keeps many loads in flight for a small tile; the partial sums of the
// slices of K meet in shared memory and are added in a fixed order.
#pragma once

#include "dtype.cuh"
#include "primitives.cuh"

namespace fastrnn::cuda {

constexpr int kStepWarps = 4;
constexpr int kStepThreads = kStepWarps * kWarp;

// Sixteen bytes from position k of a row of K values, zero past the end. kAligned: every row begins
// on sixteen bytes and K is a multiple of what they hold.
template <bool kAligned, class Scalar>
FASTRNN_HD Quad load_quad(const Scalar* row, int64_t k, int64_t K) {
  constexpr int kValues = sizeof(Quad) / sizeof(Scalar);
  Quad quad{};
  if constexpr (kAligned) {
    if (k < K) quad = *reinterpret_cast<const Quad*>(row + k);
  } else {
    Scalar value[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      value[i] = k + i < K ? row[k + i] : Storage<Scalar>::narrow(0);
    }
    __builtin_memcpy(&quad, value, sizeof quad);
  }
  return quad;
}

// Multiply-adds of the accumulate type. Lane l sums weight row l / 4 of each group against every
// input row, over the quarter l % 4 of a chunk.
template <class Scalar, int kHalves, int kRows>
struct FmaTile {
  static constexpr int kLaneRows = kRows;
  static constexpr int kSlices = 4 * kStepWarps;
  static constexpr int kUnroll = 1;  // one chunk is enough loads in flight, and all registers
  Scalar sum[kHalves][kRows] = {};

  static FASTRNN_HD int lane_row(int i, int /*lane*/) { return i; }

  FASTRNN_HD void multiply(const Quad (&weight)[kHalves], const Quad (&input)[kRows]) {
    constexpr int kValues = sizeof(Quad) / sizeof(Scalar);
    Scalar w[kHalves][kValues];
    __builtin_memcpy(w, weight, sizeof w);
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      Scalar x[kValues];
      __builtin_memcpy(x, &input[row], sizeof x);
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
#pragma unroll
        for (int i = 0; i < kValues; ++i) sum[half][row] += w[half][i] * x[i];
      }
    }
  }

  // visit(slice, half, row, unit, value) for every partial sum of this lane.
  template <class Visit>
  FASTRNN_HD void each(int warp, int lane, Visit visit) const {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        visit(warp * 4 + lane % 4, half, row, lane / 4, sum[half][row]);
      }
    }
  }
};

// Tensor cores: weights on the 16-row side of the mma, two groups a tile, and the batch on its
// 8-column side, so that a small batch wastes little. The K-words of a mma may come in any order as
// long as both operands agree: taking each lane's four consecutive words keeps the loads wide.
// kRounded: tf32 operands come rounded already. kChains: an mma waits for the sum of the one before
// it, so sums that take turns halve the wait where a tile has few; reduce() then adds them up.
template <class Scalar, int kHalves, int kRows, bool kRounded = false, int kChains = 1>
struct MmaTile {
  static constexpr int kLaneRows = kRows / 8;
  static constexpr int kSlices = kStepWarps;
  static constexpr int kUnroll = 2;
  static constexpr int kTiles = (kHalves + 1) / 2;
  float chains[kChains][kTiles][kLaneRows][4] = {};

  static FASTRNN_HD int lane_row(int i, int lane) { return i * 8 + lane / 4; }

  static FASTRNN_HD uint32_t operand(uint32_t word) {
    if constexpr (sizeof(Scalar) == sizeof(float) && !kRounded) return round_to_tf32(word);
    return word;
  }

  // Not FASTRNN_HD: mma exists on the device alone.
  __device__ __forceinline__ void multiply(const Quad (&weight)[kHalves],
                                           const Quad (&input)[kLaneRows]) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const Quad& low = weight[2 * tile];
        const bool paired = 2 * tile + 1 < kHalves;
        const Quad& high = weight[paired ? 2 * tile + 1 : 2 * tile];
        const uint32_t a0 = operand(low.word[i]), a2 = operand(low.word[i + 1]);
        const uint32_t a1 = paired ? operand(high.word[i]) : 0;
        const uint32_t a3 = paired ? operand(high.word[i + 1]) : 0;
#pragma unroll
        for (int n = 0; n < kLaneRows; ++n) {
          mma<Scalar>(chains[i / 2 % kChains][tile][n], a0, a1, a2, a3, operand(input[n].word[i]),
                      operand(input[n].word[i + 1]));
        }
      }
    }
  }

  __device__ __forceinline__ void reduce(int /*lane*/) {
#pragma unroll
    for (int chain = 1; chain < kChains; ++chain) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int n = 0; n < kLaneRows; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) chains[0][tile][n][i] += chains[chain][tile][n][i];
        }
      }
    }
  }

  template <class Visit>
  FASTRNN_HD void each(int warp, int lane, Visit visit) const {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int n = 0; n < kLaneRows; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float sum = chains[0][half / 2][n][half % 2 * 2 + c];
          visit(warp, half, n * 8 + lane % 4 * 2 + c, lane / 4, sum);
        }
      }
    }
  }
};

// The whole block's product: run() by every thread, then a block barrier, then sum().
template <class Scalar, int kGroups, int kTileRows, bool kTensorCores>
struct BlockProduct {
  static constexpr int kHalves = kGroups;
  static constexpr int kRows = kTileRows;
  using Lane = std::conditional_t<kTensorCores, MmaTile<Scalar, kHalves, kRows>,
                                  FmaTile<Scalar, kHalves, kRows>>;
  using A = Accumulate<Scalar>;
  // The eight extra values move the slices, written together, to different banks.
  static constexpr int kSliceStride = kHalves * kRows * 8 + 8;
  static constexpr int kSharedBytes = Lane::kSlices * kSliceStride * static_cast<int>(sizeof(A));
  static_assert(kSharedBytes <= 48 * 1024, "more shared memory than a launch gets without asking");

  // weight_row(half) and input_row(row) give this lane's pointers; rows outside of the problem must
  // be directed to any valid row, and their sums ignored.
  template <bool kAligned, class WeightRow, class InputRow>
  __device__ __forceinline__ static void run(WeightRow weight_row, InputRow input_row, int64_t K) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const Scalar* weight[kHalves];
    const Scalar* input[Lane::kLaneRows];
#pragma unroll
    for (int half = 0; half < kHalves; ++half) weight[half] = weight_row(half, lane / 4);
#pragma unroll
    for (int i = 0; i < Lane::kLaneRows; ++i) input[i] = input_row(Lane::lane_row(i, lane));

    Lane mine;
    constexpr int kValues = sizeof(Quad) / sizeof(Scalar);
    // The bound is the same for all lanes of a warp, as mma demands.
#pragma unroll(Lane::kUnroll)
    for (int64_t chunk = warp * 4 * kValues; chunk < K; chunk += kStepWarps * 4 * kValues) {
      const int64_t k = chunk + lane % 4 * kValues;
      Quad w[kHalves], x[Lane::kLaneRows];
#pragma unroll
      for (int half = 0; half < kHalves; ++half) w[half] = load_quad<kAligned>(weight[half], k, K);
#pragma unroll
      for (int i = 0; i < Lane::kLaneRows; ++i) x[i] = load_quad<kAligned>(input[i], k, K);
      mine.multiply(w, x);
    }

    A* shared = reinterpret_cast<A*>(shared_memory());
    mine.each(warp, lane, [=](int slice, int half, int row, int unit, A value) {
      shared[slice * kSliceStride + (half * kRows + row) * 8 + unit] = value;
    });
  }

  __device__ __forceinline__ static A sum(int half, int row, int unit) {
    const A* shared = reinterpret_cast<const A*>(shared_memory()) + (half * kRows + row) * 8 + unit;
    A total = 0;
#pragma unroll
    for (int slice = 0; slice < Lane::kSlices; ++slice) total += shared[slice * kSliceStride];
    return total;
  }
};

}  // namespace fastrnn::cuda
