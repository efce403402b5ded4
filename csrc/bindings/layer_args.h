// The arguments of a layer call, checked and made contiguous. Letters as in cpu/params.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "../cells/cell_info.h"

namespace fastrnn {

// The cell at a position of cells.def; raises for a number that is none.
const CellInfo& cell_info(int64_t cell);

struct DirectionTensors {
  at::Tensor w_ih, w_hh, b_ih, b_hh, w_hr;  // undefined where the layer has none
};

// Which steps of a sequence exist, and where its state comes from; beside batch_sizes.
struct Timing {
  std::optional<at::Tensor> lengths;  // (B) int64: row b has the steps before lengths[b]
  std::optional<at::Tensor> resets;   // (B, T) bool: no state crosses from step t - 1 to step t, in
                                      // either direction, nor from h_0 into step 0 forwards
  bool reverse = false;               // the one direction there is runs backwards in time
};

struct LayerArgs {
  // `function` is named in messages. Raises unless every shape, dtype and device agrees. `c_type`:
  // of c's initial and final values and their gradients, if not the type of x.
  LayerArgs(const char* function, int64_t cell, const at::Tensor& x,
            const std::optional<at::Tensor>& batch_sizes, const std::vector<at::Tensor>& hx,
            const std::vector<at::Tensor>& weights, const Timing& timing = {},
            std::optional<at::ScalarType> c_type = {});

  // Checks another tensor of the call (a gradient, an output) and returns it contiguous.
  at::Tensor checked(const at::Tensor& tensor, const char* name, at::IntArrayRef shape,
                     std::optional<at::ScalarType> type = {}) const;
  std::vector<at::Tensor> checked_states(const std::vector<at::Tensor>& states,
                                         const char* name) const;

  at::ScalarType x_type() const { return c10::typeMetaToScalarType(options.dtype()); }

  // (T, B, width) or, packed, (N, width).
  std::vector<int64_t> rows_shape(int64_t width) const;

  const char* function;
  CellInfo cell;
  bool packed, biases, projected, reverse;
  int64_t T, B, I, H, R, D, N;
  at::Tensor x;
  std::optional<at::ScalarType> c_type;
  std::vector<at::Tensor> hx;
  std::vector<DirectionTensors> weights;
  at::Tensor lengths, resets;  // contiguous; undefined where all rows have T steps, without resets
  std::vector<int64_t> offsets;  // (T + 1), the first row of each step
  at::TensorOptions options;     // dtype and device of all tensors
};

}  // namespace fastrnn
