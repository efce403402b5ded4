#include "layer_args.h"

#include <ATen/ops/zeros.h>

#include <algorithm>

#include "../cells/user_cells.h"
#include "../common/philox.h"
#include "gate.h"
#include "sorted_rows.h"

namespace fastrnn {
namespace {

constexpr const char* kSlotNames[] = {"w_ih", "w_hh", "b_ih", "b_hh", "w_hr"};

LayerSpec unpacked(const char* function, at::IntArrayRef spec) {
  TORCH_CHECK(spec.size() == LayerSpec::kNumbers && spec[0] == LayerSpec::kVersion, function,
              ": spec must hold ", LayerSpec::kNumbers, " numbers and begin with version ",
              LayerSpec::kVersion, ", got ", spec);
  TORCH_CHECK(spec[2] >= 0 && spec[2] <= 2, function,
              ": save must be 0 (nothing), 1 (everything) or 2 (states), got ", spec[2]);
  TORCH_CHECK(spec[3] >= 0 && spec[3] <= kMostDirections, function, ": forwards must be in 0 .. ",
              kMostDirections, ", got ", spec[3]);
  cell_info(spec[1]);  // before the number becomes an int
  return {int(spec[1]), Save(spec[2]), int(spec[3]), spec[4] != 0, spec[5]};
}

}  // namespace

const CellInfo& cell_info(int64_t cell) {
  const CellInfo* const found = find_info(cell);
  TORCH_CHECK(found || cell < kFirstUserCell, "fastrnn: cell ", cell,
              " is not loaded: call fastrnn.load_cell with its header first");
  TORCH_CHECK(found, "fastrnn: cell must be in 0 .. ", kCellCount - 1, ", got ", cell);
  return *found;
}

Dtype dtype_of(const char* function, const at::Tensor& x) {
  constexpr at::ScalarType kTypes[] = {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf};
  const auto* const found = std::find(std::begin(kTypes), std::end(kTypes), x.scalar_type());
  TORCH_CHECK(found != std::end(kTypes), function,
              ": x must be float64, float32, bfloat16 or float16, got ", x.scalar_type());
  return Dtype(found - kTypes);
}

LayerArgs::LayerArgs(const char* function, const GivenTensors& tensors, at::IntArrayRef numbers,
                     at::ArrayRef<double> scalars_given, bool may_be_wide)
    : function(function), spec(unpacked(function, numbers)), cell(cell_info(spec.cell)) {
  const at::Tensor& x_given = tensors.x;
  const Tensors& hx_given = tensors.hx;
  TORCH_CHECK(tensors.given.size() == kGivens, function, ": given must hold ", int(kGivens),
              " entries (batch_sizes, lengths, resets, operand_mask, seeds), got ",
              tensors.given.size());
  packed = tensors.given[kBatchSizes].has_value();
  TORCH_CHECK(x_given.dim() == (packed ? 2 : 3), function, ": x must have shape ",
              packed ? "(N, I) with batch_sizes" : "(T, B, I)", ", got ", x_given.sizes());
  TORCH_CHECK(int64_t(hx_given.size()) == cell.states, function, ": hx must hold ", cell.states,
              " tensors for ", cell.mode, ", got ", hx_given.size());
  TORCH_CHECK(hx_given[0].dim() == 3, function, ": hx[0] must have shape (D, B, R), got ",
              hx_given[0].sizes());
  options = x_given.options().requires_grad(false);
  D = hx_given[0].size(0);
  R = hx_given[0].size(2);
  TORCH_CHECK(D >= 1 && D <= kMostDirections, function, ": hx[0] must have 1 .. ", kMostDirections,
              " directions, got ", D);
  TORCH_CHECK(R > 0, function, ": hx[0] must have units, got shape ", hx_given[0].sizes());
  TORCH_CHECK(spec.forwards <= D, function, ": forwards must be in 0 .. D = ", D, ", got ",
              spec.forwards);
  set_time(x_given, tensors.given);
  set_weights(tensors.weights);
  const bool wide = may_be_wide && x_given.element_size() == 2 && cell.states > 1 &&
                    hx_given[1].scalar_type() == at::kFloat;
  if (wide) carried_type = at::kFloat;
  hx = checked_states(hx_given, "hx");
  lengths = mask(tensors.given[kLengths], "lengths", at::kLong, {B});
  resets = mask(tensors.given[kResets], "resets", at::kBool, {B, T});
  if (const auto& given = tensors.given[kOperandMask])
    operand_mask = checked(*given, "operand_mask", {D, B, R});
  set_scalars(scalars_given, tensors.given[kSeeds]);
}

void LayerArgs::set_scalars(at::ArrayRef<double> given,
                            const std::optional<at::Tensor>& seeds_given) {
  const int64_t count = given.size(), own = cell.scalars;
  zoned = count == own + 2;
  TORCH_CHECK(count == own || zoned, function, ": scalars must hold ", own, " numbers for ",
              cell.mode, ", and two more with zoneout, got ", count);
  std::copy_n(given.begin(), own, scalars);
  std::copy(given.begin() + own, given.end(), rates);
  for (const double rate : rates) {
    TORCH_CHECK(rate >= 0 && rate <= 1, function, ": rates of zoneout must be in [0, 1], got ",
                rate);
  }
  TORCH_CHECK(!zoned || !projected, function, ": zoneout and a projection exclude each other");
  if (!seeds_given) return;
  TORCH_CHECK(zoned, function, ": seeds belong to the rates of zoneout, which are missing");
  seeds = checked(*seeds_given, "seeds", {D, B}, at::kLong);
}

Zoneout LayerArgs::zoneout() const {
  const int64_t* const keys = seeds.defined() ? seeds.const_data_ptr<int64_t>() : nullptr;
  return {zoned,
          {rates[0], rates[1]},
          {threshold_of(rates[0]), threshold_of(rates[1])},
          keys,
          spec.first_step};
}

void LayerArgs::set_time(const at::Tensor& x_given, const OptionalTensors& given) {
  if (packed) {
    offsets = step_offsets(function, *given[kBatchSizes], x_given.size(0));
    T = int64_t(offsets.size()) - 1;
    TORCH_CHECK(T > 0, function, ": expected sequence length to be larger than 0");
    B = offsets[1];
  } else {
    T = x_given.size(0);
    TORCH_CHECK(T > 0, function, ": expected sequence length to be larger than 0");
    B = x_given.size(1);
    offsets = equal_offsets(T, B);
  }
  N = offsets.back();
  I = x_given.size(-1);
  x = checked(x_given, "x", rows_shape(I));
}

void LayerArgs::set_weights(const OptionalTensors& given) {
  TORCH_CHECK(int64_t(given.size()) == D * slots(), function, ": weights must hold ", slots(),
              " entries for each of ", D, " directions, got ", given.size());
  biases = given[kBih].has_value();
  projected = given[kWhr].has_value();
  const int whole = cell.recurrent ? kWhh : kWih;  // the slot of a matrix with all gates
  const auto& matrix = given[whole];
  TORCH_CHECK(matrix && matrix->dim() == 2, function, ": ", kSlotNames[whole],
              " must have shape (G * H, ", cell.recurrent ? "R" : "I", "), got ",
              matrix ? c10::str(matrix->sizes()) : "None");
  const int64_t gate_rows = matrix->size(0);
  TORCH_CHECK(gate_rows % cell.gates == 0, function, ": ", kSlotNames[whole],
              " must have a multiple of ", cell.gates, " rows for ", cell.mode, ", got ",
              gate_rows);
  H = gate_rows / cell.gates;
  TORCH_CHECK(projected ? cell.can_project && R < H : R == H, function,
              projected ? ": a projection needs a cell without other use of h, and R < H, got "
                        : ": h must be as wide as H, got ",
              cell.mode, " with R = ", R, ", H = ", H);
  const int64_t ih[] = {gate_rows, I}, hh[] = {gate_rows, R}, bias[] = {gate_rows}, hr[] = {R, H};
  const at::IntArrayRef shapes[] = {ih, hh, bias, bias, hr};
  weights.reserve(given.size());
  for (int64_t at = 0; at < D * slots(); ++at) {
    const int slot = int(at % slots());
    const bool optional_bias = slot == kBih || slot == kBhh;
    const bool expected = optional_bias  ? biases
                          : slot == kWhh ? cell.recurrent
                                         : slot != kWhr || projected;
    const char* name = slot < kFirstParam ? kSlotNames[slot] : cell.param[slot - kFirstParam];
    TORCH_CHECK(given[at].has_value() == expected, function, ": ", name, " must be ",
                expected ? "a tensor" : "None", " in every direction, got ",
                expected ? "None" : "a tensor");
    if (!expected) {
      weights.emplace_back();
    } else if (slot < kFirstParam) {
      weights.push_back(checked(*given[at], name, shapes[slot]));
    } else {
      weights.push_back(checked(*given[at], name, {cell.param_rows(slot - kFirstParam) * H}));
    }
  }
}

at::Tensor LayerArgs::mask(const std::optional<at::Tensor>& given, const char* name,
                           at::ScalarType dtype, at::IntArrayRef shape) const {
  if (!given) return {};
  TORCH_CHECK(!packed, function, ": ", name, " and batch_sizes exclude each other");
  return checked(*given, name, shape, dtype);
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

Tensors LayerArgs::checked_states(const Tensors& states, const char* name) const {
  Tensors result{checked(states[0], name, {D, B, R})};
  for (int64_t s = 1; s < cell.states; ++s) {
    result.push_back(checked(states[s], name, {D, B, H}, carried_type));
  }
  return result;
}

at::DimVector LayerArgs::rows_shape(int64_t width) const {
  if (packed) return {N, width};
  return {T, B, width};
}

LayerResults::LayerResults(const LayerArgs& args, const OptionalTensors& grads,
                           const Tensors& results, bool rebuilds) {
  const CellInfo& cell = args.cell;
  const size_t states = cell.states, sequences = args.spec.all_states ? states - 1 : 0;
  TORCH_CHECK(grads.size() == 1 + states + sequences, args.function, ": grads must hold ",
              1 + states + sequences, " entries (output, ", states, " final states, ", sequences,
              " sequences of states) for ", cell.mode, ", got ", grads.size());
  static constexpr const char* kNames[] = {"grads[0]", "grads[1]", "grads[2]", "grads[3]",
                                           "grads[4]", "grads[5]", "grads[6]", "grads[7]"};
  static_assert(std::size(kNames) == 2 * kMostStates);
  const auto grad = [&](size_t i, at::IntArrayRef shape, std::optional<at::ScalarType> type = {}) {
    if (!grads[i]) return at::zeros(shape, args.options.dtype(type.value_or(args.x_type())));
    return args.checked(*grads[i], kNames[i], shape, type);
  };
  const at::DimVector output_shape = args.rows_shape(args.D * args.R);
  grad_output = grad(0, output_shape);
  for (size_t s = 0; s < states; ++s) {
    grad_last.push_back(
        grad(1 + s, {args.D, args.B, s ? args.H : args.R}, s ? args.carried_type : std::nullopt));
  }
  for (size_t s = 0; s < sequences; ++s)
    grad_sequences.push_back(grad(1 + states + s, args.rows_shape(args.D * args.H)));

  TORCH_CHECK(args.spec.save != Save::kNothing, args.function,
              ": backward needs results of a forward call with save > 0, got save = 0");
  const bool has_gates = cell.saved > 0 && !(rebuilds && args.spec.save == Save::kStates);
  const bool has_given = args.zoned && cell.read_next > 0;
  const bool has_statistics = cell.statistics > 0;
  const size_t expected =
      1 + has_gates + cell.saves_carried + has_given + has_statistics + args.projected;
  TORCH_CHECK(results.size() == expected, args.function, ": results must hold the ", expected,
              " tensors output and saved of a forward call with save = ", int(args.spec.save),
              ", got ", results.size());
  output = args.checked(results[0], "output", output_shape);
  size_t next = 1;
  const auto saved = [&](const char* name, at::IntArrayRef shape,
                         std::optional<at::ScalarType> type = {}) {
    const at::Tensor& tensor = results[next++];
    const at::Tensor checked = args.checked(tensor, name, shape, type);
    TORCH_CHECK(tensor.is_contiguous(), args.function, ": ", name, " must be contiguous");
    return checked;
  };
  if (has_gates) gates = saved("saved gates", {args.D, args.N, cell.saved, args.H});
  if (cell.saves_carried) {
    carried =
        saved("saved states", {args.D, args.N, cell.states - 1, args.H}, args.accumulate_type());
  }
  if (has_given) {
    given = saved("saved states of the cell", {args.D, args.N, cell.read_next, args.H},
                  args.accumulate_type());
  }
  if (has_statistics) {
    statistics =
        saved("saved statistics", {args.D, args.N, cell.statistics}, args.accumulate_type());
  }
  if (args.projected) hidden = saved("saved h before the projection", {args.D, args.N, args.H});
}

}  // namespace fastrnn
