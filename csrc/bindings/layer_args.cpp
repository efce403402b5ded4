#include "layer_args.h"

#include "gate.h"

namespace fastrnn {
namespace {

std::vector<int64_t> step_offsets(const char* function, const at::Tensor& given) {
  const at::Tensor sizes = plain(given, function, "batch_sizes");
  TORCH_CHECK(sizes.dim() == 1 && sizes.scalar_type() == at::kLong && sizes.device().is_cpu(),
              function, ": batch_sizes must be an int64 CPU tensor of shape (T,), got ",
              sizes.scalar_type(), " of shape ", sizes.sizes(), " on ", sizes.device());
  const at::Tensor contiguous = sizes.contiguous();
  const int64_t* size = contiguous.const_data_ptr<int64_t>();
  std::vector<int64_t> offsets{0};
  for (int64_t t = 0; t < contiguous.numel(); ++t) {
    TORCH_CHECK(size[t] > 0 && (t == 0 || size[t] <= size[t - 1]), function,
                ": batch_sizes must be positive and must not increase, got ", size[t], " at index ",
                t, t == 0 ? "" : " after " + std::to_string(size[t - 1]));
    offsets.push_back(offsets.back() + size[t]);
  }
  return offsets;
}

}  // namespace

const CellInfo& cell_info(int64_t cell) {
  TORCH_CHECK(cell >= 0 && cell < kCellCount, "fastrnn: cell must be in 0 .. ", kCellCount - 1,
              ", got ", cell);
  return kCells[cell];
}

LayerArgs::LayerArgs(const char* function, int64_t cell_number, const at::Tensor& x_given,
                     const std::optional<at::Tensor>& batch_sizes,
                     const std::vector<at::Tensor>& hx_given,
                     const std::vector<at::Tensor>& weights_given, const Timing& timing,
                     std::optional<at::ScalarType> c_type)
    : function(function),
      cell(cell_info(cell_number)),
      packed(batch_sizes.has_value()),
      reverse(timing.reverse),
      c_type(c_type) {
  TORCH_CHECK(x_given.dim() == (packed ? 2 : 3), function, ": x must have shape ",
              packed ? "(N, I) with batch_sizes" : "(T, B, I)", ", got ", x_given.sizes());
  TORCH_CHECK(int64_t(hx_given.size()) == cell.states, function, ": hx must hold ", cell.states,
              " tensors for ", cell.mode, ", got ", hx_given.size());
  TORCH_CHECK(hx_given[0].dim() == 3, function, ": hx[0] must have shape (D, B, R), got ",
              hx_given[0].sizes());
  options = x_given.options().requires_grad(false);
  D = hx_given[0].size(0);
  R = hx_given[0].size(2);
  TORCH_CHECK(D == 1 || D == 2, function, ": hx[0] must have 1 or 2 directions, got ", D);
  if (packed) {
    offsets = step_offsets(function, *batch_sizes);
    T = int64_t(offsets.size()) - 1;
    TORCH_CHECK(T > 0, function, ": expected sequence length to be larger than 0");
    B = offsets[1];
  } else {
    T = x_given.size(0);
    TORCH_CHECK(T > 0, function, ": expected sequence length to be larger than 0");
    B = x_given.size(1);
    for (int64_t t = 0; t <= T; ++t) offsets.push_back(t * B);
  }
  N = offsets.back();
  I = x_given.size(-1);
  x = checked(x_given, "x", rows_shape(I));

  const int64_t each = int64_t(weights_given.size()) / D;
  TORCH_CHECK(each >= 2 && each <= 5 && int64_t(weights_given.size()) == each * D, function,
              ": weights must hold 2 to 5 tensors for each of ", D, " directions, got ",
              weights_given.size());
  biases = each >= 4;
  projected = each % 2 == 1;
  TORCH_CHECK(weights_given[1].dim() == 2, function, ": w_hh must have shape (G * H, R), got ",
              weights_given[1].sizes());
  const int64_t gate_rows = weights_given[1].size(0);
  TORCH_CHECK(gate_rows % cell.gates == 0, function, ": w_hh must have a multiple of ", cell.gates,
              " rows for ", cell.mode, ", got ", gate_rows);
  H = gate_rows / cell.gates;
  TORCH_CHECK(
      projected ? cell.states == 2 && R < H : R == H, function,
      projected ? ": a projection needs an LSTM and R < H, got " : ": h must be as wide as H, got ",
      cell.mode, " with R = ", R, ", H = ", H);
  for (int64_t d = 0; d < D; ++d) {
    const at::Tensor* w = weights_given.data() + d * each;
    DirectionTensors tensors;
    tensors.w_ih = checked(*w++, "w_ih", {gate_rows, I});
    tensors.w_hh = checked(*w++, "w_hh", {gate_rows, R});
    if (biases) {
      tensors.b_ih = checked(*w++, "b_ih", {gate_rows});
      tensors.b_hh = checked(*w++, "b_hh", {gate_rows});
    }
    if (projected) tensors.w_hr = checked(*w++, "w_hr", {R, H});
    weights.push_back(tensors);
  }
  hx = checked_states(hx_given, "hx");

  TORCH_CHECK(!reverse || D == 1, function, ": reverse needs one direction, got ", D);
  const auto mask = [&](const std::optional<at::Tensor>& given, const char* name,
                        at::ScalarType dtype, at::IntArrayRef shape) {
    if (!given) return at::Tensor();
    const at::Tensor mask = plain(*given, function, name);
    TORCH_CHECK(!packed, function, ": ", name, " and batch_sizes exclude each other");
    TORCH_CHECK(
        mask.scalar_type() == dtype && mask.sizes() == shape && mask.device() == options.device(),
        function, ": ", name, " must be ", dtype, " of shape ", shape, " on ", options.device(),
        ", got ", mask.scalar_type(), " of shape ", mask.sizes(), " on ", mask.device());
    return mask.contiguous();
  };
  lengths = mask(timing.lengths, "lengths", at::kLong, {B});
  resets = mask(timing.resets, "resets", at::kBool, {B, T});
}

at::Tensor LayerArgs::checked(const at::Tensor& given, const char* name, at::IntArrayRef shape,
                              std::optional<at::ScalarType> type) const {
  const at::Tensor tensor = plain(given, function, name);
  TORCH_CHECK(tensor.sizes() == shape, function, ": ", name, " must have shape ", shape, ", got ",
              tensor.sizes());
  const at::ScalarType wanted = type.value_or(x_type());
  TORCH_CHECK(tensor.scalar_type() == wanted && tensor.device() == options.device(), function, ": ",
              name, " must be ", wanted, " on ", options.device(),
              wanted == x_type() ? " like x" : "", ", got ", tensor.scalar_type(), " on ",
              tensor.device());
  return tensor.contiguous();
}

std::vector<at::Tensor> LayerArgs::checked_states(const std::vector<at::Tensor>& states,
                                                  const char* name) const {
  TORCH_CHECK(int64_t(states.size()) == cell.states, function, ": ", name, " must hold ",
              cell.states, " tensors for ", cell.mode, ", got ", states.size());
  std::vector<at::Tensor> result{checked(states[0], name, {D, B, R})};
  if (cell.states > 1) result.push_back(checked(states[1], name, {D, B, H}, c_type));
  return result;
}

std::vector<int64_t> LayerArgs::rows_shape(int64_t width) const {
  if (packed) return {N, width};
  return {T, B, width};
}

}  // namespace fastrnn
