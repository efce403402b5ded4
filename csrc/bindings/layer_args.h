// The arguments of a layer call (common/layer_spec.h), checked and made contiguous: the one place
// where its lists are taken apart. Letters as in cpu/params.h.
#pragma once

#include <ATen/DimVector.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "../cells/cell_info.h"

namespace fastrnn {

using Tensors = std::vector<at::Tensor>;
using OptionalTensors = std::vector<std::optional<at::Tensor>>;

// The cell at a position of cells.def, or a user's; raises for a number that is none.
const CellInfo& cell_info(int64_t cell);

// Raises for a type without kernels.
Dtype dtype_of(const char* function, const at::Tensor& x);

// The tensors of a call as they are given.
struct GivenTensors {
  const at::Tensor& x;
  const OptionalTensors& given;
  const Tensors& hx;
  const OptionalTensors& weights;
};

struct LayerArgs {
  // `function` is named in messages. Raises unless every shape, dtype and device agrees. Where
  // `may_be_wide`, initial states other than h may be float32 beside 16-bit tensors.
  LayerArgs(const char* function, const GivenTensors& tensors, at::IntArrayRef spec,
            at::ArrayRef<double> scalars, bool may_be_wide = false);

  // Checks another tensor of the call (a gradient, an output) and returns it contiguous.
  at::Tensor checked(const at::Tensor& tensor, const char* name, at::IntArrayRef shape,
                     std::optional<at::ScalarType> type = {}) const;
  Tensors checked_states(const Tensors& states, const char* name) const;

  at::ScalarType x_type() const { return c10::typeMetaToScalarType(options.dtype()); }
  at::ScalarType accumulate_type() const { return x_type() == at::kDouble ? x_type() : at::kFloat; }
  at::TensorOptions accumulate_options() const { return options.dtype(accumulate_type()); }

  // (T, B, width) or, packed, (N, width).
  at::DimVector rows_shape(int64_t width) const;

  // Of direction d; undefined where the layer has none.
  const at::Tensor& weight(int64_t d, int slot) const { return weights[d * slots() + slot]; }
  int64_t slots() const { return kFirstParam + cell.params; }

  const char* function;
  LayerSpec spec;
  CellInfo cell;
  bool packed, biases, projected, zoned;
  int64_t T, B, I, H, R, D, N;
  at::Tensor x;
  std::optional<at::ScalarType> carried_type;  // of hx but for h, where it is not that of x
  Tensors hx, weights;
  double scalars[kMostScalars] = {}, rates[2] = {};
  at::Tensor lengths, resets;  // contiguous; undefined where all rows have T steps, without resets
  at::Tensor operand_mask;     // (D, B, R), or undefined
  at::Tensor seeds;            // (D, B), or undefined
  std::vector<int64_t> offsets;  // (T + 1), the first row of each step
  at::TensorOptions options;     // dtype and device of all tensors

  Zoneout zoneout() const;

 private:
  void set_time(const at::Tensor& x_given, const OptionalTensors& given);
  void set_weights(const OptionalTensors& given);
  at::Tensor mask(const std::optional<at::Tensor>& given, const char* name, at::ScalarType dtype,
                  at::IntArrayRef shape) const;
  void set_scalars(at::ArrayRef<double> given, const std::optional<at::Tensor>& seeds);
};

// What backward is given beside the arguments of forward.
struct LayerResults {
  // `rebuilds`: gates are not there where the call saved its states alone.
  LayerResults(const LayerArgs& args, const OptionalTensors& grads, const Tensors& results,
               bool rebuilds);

  at::Tensor grad_output;
  Tensors grad_last;       // of the final states
  Tensors grad_sequences;  // of the states besides h after each step, or empty
  at::Tensor output;
  at::Tensor gates, carried, given, statistics, hidden;  // saved; undefined where they are not
};

}  // namespace fastrnn
