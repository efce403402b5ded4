// The schedule of a direction: the order of its steps, the rows of each, and where a row lies.
#pragma once

#include "../common/host_device.h"
#include "params.h"
#include "vec.h"

namespace fastrnn::cpu::FASTRNN_ISA {

class Schedule {
 public:
  Schedule(const LayerShape& s, int d)
      : offsets(s.offsets),
        order(s.order),
        resets(s.resets),
        T(s.T),
        D(s.D),
        batch(s.batch),
        d(d),
        rows_before(d * s.offsets[s.T]),
        reverse(d >= s.forwards) {}

  FASTRNN_HD int64_t step(int64_t e) const { return reverse ? T - 1 - e : e; }
  FASTRNN_HD int64_t previous(int64_t t) const { return reverse ? t + 1 : t - 1; }
  FASTRNN_HD int64_t rows(int64_t t) const {
    return t < 0 || t >= T ? 0 : offsets[t + 1] - offsets[t];
  }

  // The step in which row b ends.
  FASTRNN_HD int64_t last(int64_t b) const {
    int64_t t = reverse ? 0 : T - 1;
    while (t > 0 && b >= rows(t)) --t;
    return t;
  }

  // Step t is the first of row b.
  FASTRNN_HD bool first(int64_t t, int64_t b) const { return b >= rows(previous(t)); }

  // A reset keeps row b's state from before step t away from it.
  FASTRNN_HD bool cut(int64_t t, int64_t b) const {
    if (!resets) return false;
    const int64_t later = reverse ? t + 1 : t;
    return b < rows(later) && resets[offsets[later] + b];
  }

  // Calls f(b) for the rows among begin .. end that are cut in step t.
  template <class F>
  FASTRNN_HD void for_cut(int64_t t, int64_t begin, int64_t end, const F& f) const {
    if (!resets) return;
    for (int64_t b = begin; b < smaller(end, rows(t)); ++b) {
      if (cut(t, b)) f(b);
    }
  }

  // Of row b in step t, in arrays (D, N, ...).
  FASTRNN_HD int64_t row(int64_t t, int64_t b) const { return rows_before + offsets[t] + b; }
  // In arrays (L, ...).
  FASTRNN_HD int64_t outer(int64_t t, int64_t b) const {
    return order ? t * batch + order[b] : offsets[t] + b;
  }
  // In arrays (L, D, ...).
  FASTRNN_HD int64_t outer_part(int64_t t, int64_t b) const { return outer(t, b) * D + d; }
  // Of row b in arrays (batch).
  FASTRNN_HD int64_t batch_row(int64_t b) const { return order ? order[b] : b; }
  // Of row b in arrays (D, batch, ...).
  FASTRNN_HD int64_t state(int64_t b) const { return d * batch + batch_row(b); }

 private:
  // Copies: the kernels' vector stores might change what a reference leads to, as far as the
  // compiler knows.
  const int64_t *offsets, *order;
  const bool* resets;
  int64_t T, D, batch, d, rows_before;
  bool reverse;
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
