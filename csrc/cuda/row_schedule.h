// Which rows a step has, where the state of a row comes from and where it goes.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace fastrnn::cuda {

// Rows offset .. offset + count of the N rows; row b of a step is row b of the batch. Kernels count
// rows in 32 bits (kMostRows).
struct Rows {
  int32_t offset;
  int32_t count;
};

// One step of one direction, with its neighbours in the order of the direction.
// Neighbours, and in backward the step itself, may lie outside of 0 .. T - 1 and have no rows;
// their offset is one step beyond the others', except in the resident kernels on packed sequences.
// Unless a RowSchedule masks rows, a row with b >= before.count starts here, from h0 and c0, and a
// row with b >= after.count ends here.
struct StepRows {
  Rows before, now, after;
};

// What one batch row does at one step of a direction.
class Moment {
 public:
  // Bits, because the resident kernels keep some moments in registers.
  static constexpr unsigned kHas = 1;       // the row has this step; else the next three are void
  static constexpr unsigned kBefore = 2;    // its state comes from the step before,
  static constexpr unsigned kInitial = 4;   // or from h0 and c0; else it is zero
  static constexpr unsigned kEnds = 8;      // its state is the row's final one
  static constexpr unsigned kCarried = 16;  // the step after takes its state
  static constexpr unsigned kLeaves = 32;   // the row has just left its first step, in backward
  static constexpr int kBits = 6;
  FASTRNN_HD explicit Moment(unsigned facts = 0) : facts_(facts) {}
  FASTRNN_HD Moment(bool has, bool before, bool initial, bool ends, bool carried, bool leaves)
      : facts_(has * kHas | before * kBefore | initial * kInitial | ends * kEnds |
               carried * kCarried | leaves * kLeaves) {}
  FASTRNN_HD bool has() const { return facts_ & kHas; }
  FASTRNN_HD bool from_before() const { return facts_ & kBefore; }
  FASTRNN_HD bool from_initial() const { return facts_ & kInitial; }
  FASTRNN_HD bool from_zero() const { return (facts_ & (kBefore | kInitial)) == 0; }
  FASTRNN_HD bool ends() const { return facts_ & kEnds; }
  FASTRNN_HD bool carried() const { return facts_ & kCarried; }
  FASTRNN_HD bool leaves() const { return facts_ & kLeaves; }
  FASTRNN_HD bool visited() const { return facts_ & (kHas | kLeaves); }  // by backward
  FASTRNN_HD unsigned facts() const { return facts_; }

 private:
  unsigned facts_;
};

struct RowSchedule {
  int64_t steps;           // T
  int forwards;            // so many directions run forwards in time, those that follow backwards
  const int64_t* lengths;  // (B), or null: row b has the steps before lengths[b], in 0 .. T
  const bool* resets;      // (B, T), or null: no state crosses from step t - 1 to step t, in either
                           // direction, nor from h0 into step 0 forwards

  FASTRNN_HD bool backwards(int direction) const { return direction >= forwards; }
  FASTRNN_HD bool masked() const { return lengths || resets; }

  // Where masked(): what row b does at step t, -1 .. T.
  FASTRNN_HD Moment moment(int direction, int64_t t, int64_t b) const {
    int64_t n = lengths ? lengths[b] : steps;
    n = n < 0 ? 0 : n < steps ? n : steps;  // in bounds whatever the device holds
    const bool back = backwards(direction);
    // Edge e lies between the steps e - 1 and e.
    const int64_t edge_before = back ? t + 1 : t, edge_after = back ? t : t + 1;
    const auto cut = [&](int64_t edge) {
      return resets && edge >= 0 && edge < n && resets[b * steps + edge];
    };
    const bool has = t >= 0 && t < n, leaves = n > 0 && t == (back ? n : -1);
    if (!has && !leaves) return Moment();
    const bool starts = t == (back ? n - 1 : 0), ends = t == (back ? 0 : n - 1);
    const bool open = has && !cut(edge_before);
    return {has, open && !starts, open && starts, ends, !ends && !cut(edge_after), leaves};
  }
};

}  // namespace fastrnn::cuda
