// Which rows a step touches, in both directions, for padded and packed sequences alike. Host only.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "params.h"

namespace fastrnn::cuda {

class Schedule {
 public:
  // offsets (T + 1): the rows of step t are offsets[t] .. offsets[t + 1], at least one and, as in a
  // PackedSequence, never more than the step before had.
  explicit Schedule(std::vector<int64_t> offsets) : offsets_(std::move(offsets)) {}

  int64_t steps() const { return static_cast<int64_t>(offsets_.size()) - 1; }
  int64_t total() const { return offsets_.back(); }

  // The step that `direction` visits at `position`; it exists for 0 .. steps() - 1, and outside of
  // that range there are no rows.
  Rows rows(int direction, int64_t position) const {
    if (position < 0 || position >= steps()) return {0, 0};
    const int64_t t = direction == 0 ? position : steps() - 1 - position;
    return {offsets_[t], offsets_[t + 1] - offsets_[t]};
  }

  Tick tick(int direction, int64_t position) const {
    return {rows(direction, position - 1), rows(direction, position),
            rows(direction, position + 1)};
  }

 private:
  std::vector<int64_t> offsets_;
};

}  // namespace fastrnn::cuda
