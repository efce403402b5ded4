// The rows of a layer call that exist, as the CPU kernels take them (cpu/params.h).
#pragma once

#include "layer_args.h"
#include "sorted_rows.h"

namespace fastrnn {

struct LayerRows {
  // Raises unless x is on the CPU and the lengths are within 0 .. T.
  explicit LayerRows(const LayerArgs& args);

  // The rows of a tensor (T, B, width) that exist, (N, width); the tensor itself where all do.
  at::Tensor gather(const at::Tensor& tensor) const;
  // The way back, in the shape of args.rows_shape(): zeros in the rows that do not exist.
  at::Tensor scatter(const at::Tensor& rows) const;
  // An uninitialised tensor in the shape of args.rows_shape() but for zeros in those rows.
  at::Tensor empty(int64_t width) const;
  // Uninitialised final states or their gradients, but for the batch rows without a step: those
  // are the ones of `from`.
  std::vector<at::Tensor> empty_states(const std::vector<at::Tensor>& from) const;

  // What w_hh was multiplied with in the step of each row in direction d, (N, R): h before the
  // step, masked where there is a mask.
  at::Tensor operands(const at::Tensor& output, int64_t d) const;

  const LayerArgs& args;
  int64_t T, B, N;               // the longest length, the batch rows that have a step, all rows
  std::vector<int64_t> offsets;  // (T + 1), the first row of each step
  std::vector<int64_t> order;    // batch rows, longest first; empty where all have args.T steps
  at::Tensor resets;             // (N), or undefined where there are none

 private:
  void set_lengths(const int64_t* lengths);
  int64_t batch_row(int64_t b) const { return order.empty() ? b : order[b]; }
  // Row b of step t in args.rows_shape().
  int64_t outer(int64_t t, int64_t b) const {
    return order.empty() ? offsets[t] + b : t * args.B + order[b];
  }
  // Calls f(t, b), which writes so many bytes, for every row.
  template <class F>
  void for_rows(int64_t bytes, const F& f) const;
};

}  // namespace fastrnn
