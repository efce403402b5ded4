// Which rows a step touches, in both directions, for padded and packed sequences alike. Host only.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "params.h"

namespace fastrnn::cuda {

class Schedule {
 public:
  // `forwards` as in RowSchedule. offsets (T + 1): the rows of step t are offsets[t] .. offsets[t +
  // 1], at least one and, as in a PackedSequence, never more than the step before had.
  Schedule(std::vector<int64_t> offsets, int forwards)
      : offsets_(std::move(offsets)), forwards_(forwards) {}

  int64_t steps() const { return static_cast<int64_t>(offsets_.size()) - 1; }
  int64_t total() const { return offsets_.back(); }
  int forwards() const { return forwards_; }

  bool backwards(int direction) const { return direction >= forwards_; }

  int64_t time(int direction, int64_t position) const {
    return backwards(direction) ? steps() - 1 - position : position;
  }

  // The rows at `position` of `direction`, which exists for 0 .. steps() - 1, and outside of
  // that range there are no rows, one step beyond the others.
  Rows rows(int direction, int64_t position) const {
    const int64_t t = time(direction, position);
    if (t < 0 || t >= steps()) return {static_cast<int32_t>(t < 0 ? -offsets_[1] : total()), 0};
    return {static_cast<int32_t>(offsets_[t]), static_cast<int32_t>(offsets_[t + 1] - offsets_[t])};
  }

  StepRows step_rows(int direction, int64_t position) const {
    return {rows(direction, position - 1), rows(direction, position),
            rows(direction, position + 1)};
  }

 private:
  std::vector<int64_t> offsets_;
  int forwards_;
};

}  // namespace fastrnn::cuda
