// The order in which a direction walks its steps, the rows of each step, and where a row lies.
#pragma once

#include "../common/host_device.h"
#include "params.h"

namespace fastrnn::cpu::FASTRNN_ISA {

class Walk {
 public:
  Walk(const LayerShape& shape, int d)
      : s(shape), d(d), N(shape.offsets[shape.T]), reverse(d == 1 || shape.reverse) {}

  FASTRNN_HD int64_t step(int64_t e) const { return reverse ? s.T - 1 - e : e; }
  FASTRNN_HD int64_t previous(int64_t t) const { return reverse ? t + 1 : t - 1; }
  FASTRNN_HD int64_t rows(int64_t t) const {
    return t < 0 || t >= s.T ? 0 : s.offsets[t + 1] - s.offsets[t];
  }

  // The step in which row b ends.
  FASTRNN_HD int64_t last(int64_t b) const {
    int64_t t = reverse ? 0 : s.T - 1;
    while (t > 0 && b >= rows(t)) --t;
    return t;
  }

  // Step t is the first of row b.
  FASTRNN_HD bool first(int64_t t, int64_t b) const { return b >= rows(previous(t)); }

  // A reset keeps row b's state from before step t away from it.
  FASTRNN_HD bool cut(int64_t t, int64_t b) const {
    if (!s.resets) return false;
    const int64_t later = reverse ? t + 1 : t;
    return b < rows(later) && s.resets[s.offsets[later] + b];
  }

  // Of row b in step t, in arrays (D, N, ...).
  FASTRNN_HD int64_t row(int64_t t, int64_t b) const { return d * N + s.offsets[t] + b; }
  // In arrays (L, ...).
  FASTRNN_HD int64_t outer(int64_t t, int64_t b) const {
    return s.order ? t * s.batch + s.order[b] : s.offsets[t] + b;
  }
  // In arrays (L, D, ...).
  FASTRNN_HD int64_t outer_part(int64_t t, int64_t b) const { return outer(t, b) * s.D + d; }
  // Of row b in arrays (D, batch, ...).
  FASTRNN_HD int64_t state(int64_t b) const { return d * s.batch + (s.order ? s.order[b] : b); }

 private:
  const LayerShape& s;
  const int64_t d, N;
  const bool reverse;
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
