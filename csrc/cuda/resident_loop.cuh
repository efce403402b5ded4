// What the time loops of the resident kernels share: which rows and units a thread serves, which
// rows a step has, and how the blocks of a team meet (Link, one for each tier).
#pragma once

#include "resident_product.cuh"
#include "update.cuh"

namespace fastrnn::cuda {

// How a team of this tier meets; `words` is the width of what a member publishes in each row.
// begin(): everybody is there, and sees what was written before.
// arrive() ... wait(): the same at the end of a step, with work between the two that nobody else
// waits for. publish(): rows of this block's memory to the same places of the others'. send(): to
// the same place in a member's shared memory; expect() says before how many bytes come here.
template <Tier kTier>
struct Link;

// Shared by every thread of a block.
struct Member {
  int d, rank, team;  // direction, place in the team, the team's place in its direction
  int unit, batch;    // the first unit, the first batch row
  FASTRNN_HD Member(const Team& t, uint3 block)
      : d(block.y),
        rank(static_cast<int>(block.x) % t.members),
        team(static_cast<int>(block.x) / t.members),
        unit(rank * t.units),
        batch(team * t.tiles * t.rows) {}
};

// What a thread serves of a tile and a member: units side by side, in rows that lie apart. Threads
// side by side have units side by side, as memory has.
template <class Cell, int kUnits>
class Elements {
 public:
  int unit;  // the first

  __device__ __forceinline__ Elements(const Team& team, int units_left) {
    int across = 8;
    while (across < team.units) across *= 2;
    across /= kUnits;
    unit = threadIdx.x % across * kUnits;
    first_ = threadIdx.x / across;
    apart_ = kResidentThreads / across;
    units_ = min(team.units, units_left) - unit;
    count_ = units_ > 0 ? team.rows : 0;
  }
  __device__ __forceinline__ int row(int i) const {
    const int row = first_ + i * apart_;
    // What depends on a row alone is then worked out in every step, where a cell has more to hold.
    return Cell::kStates > 2 || Cell::kParams > 0 ? opaque(row) : row;
  }
  __device__ __forceinline__ bool has(int i) const { return first_ + i * apart_ < count_; }
  __device__ __forceinline__ bool has_unit(int k) const { return k == 0 || k < units_; }

 private:
  int first_, apart_, count_, units_;
};

// The moments of a thread's rows, in one register.
template <int kEach>
class Moments {
 public:
  FASTRNN_HD Moment operator[](int i) const {
    return Moment(facts_ >> i * Moment::kBits & ((1u << Moment::kBits) - 1));
  }
  FASTRNN_HD void add(int i, Moment moment) { facts_ |= moment.facts() << i * Moment::kBits; }

 private:
  static_assert(kEach * Moment::kBits <= 32);
  unsigned facts_ = 0;
};

// Units and the most rows that a thread serves. Two units share addresses and wait for less, but
// where there is a thread for each unit, most often, one is quicker.
template <Tier kTier, int kRows>
constexpr int kThreadUnits = (kTier == Tier::kCta && kRows == 8) || kRows == 32 ? 2 : 1;
template <Tier kTier, int kRows>
constexpr int kThreadRows =
    max_units(kTier, kRows) / kThreadUnits<kTier, kRows> * kRows / kResidentThreads;

// What a row of the tile does in a step, where all rows of the batch do the same: most often.
struct Uniform {
  bool is;
  Moment moment;
  template <class Step>
  FASTRNN_HD Uniform(const Step& p, const StepRows& step_rows, int batch)
      : is(!p.moments && step_rows.before.count == batch && step_rows.now.count == batch &&
           step_rows.after.count == batch),
        moment(Moment::kHas | Moment::kBefore | Moment::kCarried) {}
};

// The rows of the steps, in the order of a direction.
struct DeviceSchedule {
  const int64_t* offsets;
  int steps, batch;
  bool backwards;

  FASTRNN_HD Rows operator[](int position) const {
    const bool exists = position >= 0 && position < steps;
    const int t = backwards ? steps - 1 - position : position;
    if (!offsets) return {t * batch, exists ? batch : 0};
    if (!exists) return {0, 0};
    const auto begin = static_cast<int32_t>(offsets[t]);
    return {begin, static_cast<int32_t>(offsets[t + 1]) - begin};
  }
  FASTRNN_HD StepRows step_rows(int position) const {
    return {(*this)[position - 1], (*this)[position], (*this)[position + 1]};
  }
};

// Rows of the tile of `rows` that begins at batch row `first`, of `count` in the step.
FASTRNN_HD int rows_of_tile(int rows, int count, int first) {
  return count <= first ? 0 : count - first < rows ? count - first : rows;
}

// The cell's parameters of a member's units into shared memory, (P, units), which a thread meets
// after the next barrier of the block.
template <class Cell, class Scalar, class Step>
__device__ __forceinline__ void load_member_params(const Step& p, int d, int units, int64_t first,
                                                   float* params) {
  for_each<Cell::kParams>([&](auto k) {
    for (int i = threadIdx.x; i < units; i += kResidentThreads) {
      const bool there = first + i < p.shape.hidden;
      params[k * units + i] = there ? Array<Scalar>(p.params[d][k])[first + i] : 0;
    }
  });
}

// As operand of the resident product: storage type, and for tensor cores tf32.
template <bool kTensorCores, class Scalar>
__device__ __forceinline__ Scalar as_operand(Scalar value) {
  if constexpr (kTensorCores && sizeof(Scalar) == sizeof(uint32_t)) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    bits = round_to_tf32(bits);
    __builtin_memcpy(&value, &bits, sizeof bits);
  }
  return value;
}

}  // namespace fastrnn::cuda
