// Which rows a step touches, in both directions, for padded and packed sequences alike. Host only.
#pragma once

#include <cstdint>
#include <vector>

#include "params.h"

namespace fastrnn::cuda {

class Schedule {
 public:
  // Every step has `batch` rows.
  Schedule(int64_t steps, int64_t batch) : counts_(steps, batch) { add_up(); }
  // Step t has batch_sizes[t] rows: positive, not increasing (a PackedSequence's).
  Schedule(const int64_t* batch_sizes, int64_t steps) : counts_(batch_sizes, batch_sizes + steps) {
    add_up();
  }

  int64_t steps() const { return static_cast<int64_t>(counts_.size()); }
  int64_t total() const { return total_; }

  // The step that `direction` visits at `position`; it exists for 0 .. steps() - 1, and outside of
  // that range there are no rows.
  Rows rows(int direction, int64_t position) const {
    if (position < 0 || position >= steps()) return {0, 0};
    const int64_t t = direction == 0 ? position : steps() - 1 - position;
    return {offsets_[t], counts_[t]};
  }

  Tick tick(int direction, int64_t position) const {
    return {rows(direction, position - 1), rows(direction, position),
            rows(direction, position + 1)};
  }

 private:
  void add_up() {
    offsets_.reserve(counts_.size());
    for (const int64_t count : counts_) {
      offsets_.push_back(total_);
      total_ += count;
    }
  }

  std::vector<int64_t> counts_, offsets_;
  int64_t total_ = 0;
};

}  // namespace fastrnn::cuda
