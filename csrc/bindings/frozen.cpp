#include "frozen.h"

#include <ATen/DimVector.h>
#include <ATen/EmptyTensor.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../cells/cell_info.h"
#include "../cpu/isa/frozen_levels.h"
#include "../cpu/parallel.h"
#include "cpu_memory.h"
#include "gate.h"
#include "sorted_rows.h"

namespace fastrnn {
namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;
using OptionalTensors = std::vector<std::optional<Tensor>>;

// torch's names of the cells' modules, by position in cells.def.
constexpr const char* kNames[] = {"LSTM", "GRU", "RNN", "RNN"};

at::ScalarType storage_of(cpu::FrozenType type) {
  constexpr at::ScalarType kTypes[] = {at::kFloat, at::kBFloat16, at::kChar};
  return kTypes[int(type)];
}

// What stands where in the weights of a direction.
enum FrozenSlot { kWeightIh, kWeightHh, kBiasIh, kBiasHh, kWeightHr, kScaleIh, kScaleHh, kSlots };

// Of rows with lengths of their own.
SortedRows rows_of_lengths(const char* name, const Tensor& given, int64_t T, int64_t batch) {
  const Tensor lengths = plain(given, name, "lengths").contiguous();
  TORCH_CHECK_VALUE(lengths.scalar_type() == at::kLong && lengths.device().is_cpu() &&
                        lengths.sizes() == at::IntArrayRef{batch},
                    name, ": lengths must be int64 of shape (B,) = (", batch, ",) on the CPU, got ",
                    lengths.scalar_type(), " of shape ", lengths.sizes());
  return sort_rows(name, lengths.const_data_ptr<int64_t>(), batch, T);
}

// A frozen stack and the tensors of a call, checked against it.
class Frozen {
 public:
  explicit Frozen(const Tensor& packed)
      : memory(plain(packed, "fastrnn._C.cpu", "the packed weights")) {
    TORCH_CHECK(memory.device().is_cpu() && memory.scalar_type() == at::kByte &&
                    memory.is_contiguous() &&
                    (uintptr_t)memory.const_data_ptr() % alignof(float) == 0 &&
                    cpu::read_header((const char*)memory.const_data_ptr(), memory.nbytes(), &shape),
                "fastrnn._C.cpu: expected the weights that pack_frozen returned, got ",
                memory.scalar_type(), " of shape ", memory.sizes());
  }

  const CellInfo& cell() const { return kCells[shape.cell]; }
  const char* name() const { return kNames[shape.cell]; }
  int64_t rows() const { return shape.layers * shape.D; }
  int64_t width(int state) const { return state == 0 ? shape.R : shape.H; }

  Tensor input(const Tensor& given) const {
    Tensor x = plain(given, name(), "input");
    TORCH_CHECK(x.device().is_cpu() && x.scalar_type() == at::kFloat, name(),
                ": a frozen layer takes float32 on the CPU, got ", x.scalar_type(), " on ",
                x.device());
    TORCH_CHECK(x.size(-1) == shape.I, "input.size(-1) must be equal to input_size. Expected ",
                shape.I, ", got ", x.size(-1));
    return x.stride(-1) == 1 || shape.I <= 1 ? x : dense(x);
  }

  // The states are (layers * D, batch, R or H), or without the batch.
  void check_states(const Tensors& states, int64_t batch, bool batched) const {
    TORCH_CHECK(int(states.size()) == cell().states, name(), ": expected ", cell().states,
                " states, got ", states.size());
    for (int k = 0; k < cell().states; ++k) {
      const Tensor& h = states[size_t(k)];
      const int64_t sizes[] = {rows(), batch, width(k)}, without_batch[] = {rows(), width(k)};
      const at::IntArrayRef expected =
          batched ? at::IntArrayRef(sizes) : at::IntArrayRef(without_batch);
      TORCH_CHECK(h.sizes() == expected, "Expected ",
                  cell().states > 1 ? "hidden[" + std::to_string(k) + "]" : "hidden", " size ",
                  expected, ", got ", h.sizes());
      TORCH_CHECK(h.device().is_cpu() && h.scalar_type() == at::kFloat, name(), ": state ", k,
                  " must be float32 on the CPU, got ", h.scalar_type(), " on ", h.device());
    }
    if (shape.type == cpu::FrozenType::kInt8 && states[0].numel() > 0) {
      const float* const h = states[0].const_data_ptr<float>();
      float most = 0;
      for (int64_t i = 0; i < states[0].numel(); ++i) most = std::max(most, std::fabs(h[i]));
      TORCH_CHECK_VALUE(most <= 1, name(),
                        ": with int8 weights h must lie within -1 .. 1, where its steps of 1/127 "
                        "are, got ",
                        most);
    }
  }

  // `states` are updated in place.
  void run(const cpu::FrozenRows<const float>& x, const cpu::FrozenRows<float>& output,
           int64_t batch, const Tensors& states, const int64_t* offsets, int64_t T, int64_t B,
           const int64_t* order) const {
    cpu::FrozenCall call{};
    call.shape = shape;
    call.packed = (const char*)memory.const_data_ptr();
    call.x = x;
    call.output = output;
    for (size_t k = 0; k < states.size(); ++k) call.states[k] = states[k].mutable_data_ptr<float>();
    call.T = T;
    call.B = B;
    call.batch = batch;
    call.offsets = offsets;
    call.order = order;
    call.threads = cpu::usable_threads(at::get_num_threads());
    const cpu::FrozenKernels kernels = cpu::frozen_kernels(shape.type);
    const size_t bytes = kernels.workspace(call);
    if (alignas(64) char small[8192]; bytes <= sizeof small) {  // of single steps
      call.workspace = small;
      return kernels.run(call);
    }
    const Tensor workspace = empty_block({int64_t(bytes)}, at::TensorOptions(at::kByte));
    call.workspace = workspace.mutable_data_ptr();
    kernels.run(call);
  }

  Tensor memory;
  cpu::FrozenShape shape;
};

bool share_memory(const Tensor& a, const Tensor& b) {
  return a.is_alias_of(b) && at::get_overlap_status(a, b) != at::MemOverlapStatus::No;
}

// Tells autograd that values it may have saved are gone.
void mark_written(const Tensor& tensor) {
  if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

template <class T>
cpu::FrozenRows<T> rows_of(const Tensor& tensor, T* data, int time, int batch) {
  return {data, tensor.stride(time), tensor.stride(batch), false};
}

}  // namespace

Tensor pack_frozen(int64_t cell, int64_t type, const std::vector<int64_t>& sizes,
                   const OptionalTensors& weights) {
  constexpr const char* kName = "fastrnn._C.cpu.pack_frozen";
  TORCH_CHECK(sizes.size() == 5, kName, ": sizes must be (layers, directions, I, H, R), got ",
              sizes.size(), " numbers");
  const cpu::FrozenShape shape{
      int(cell), cpu::FrozenType(type), int(sizes[0]), int(sizes[1]), sizes[2], sizes[3], sizes[4]};
  TORCH_CHECK(shape.cell == cell && int64_t(shape.type) == type && shape.layers == sizes[0] &&
                  shape.D == sizes[1] && cpu::frozen_serves(shape),
              kName, ": there are no kernels for cell ", cell, " with weights of type ", type,
              " and sizes ", sizes);
  const int64_t inputs = std::max(shape.I, shape.layers > 1 ? shape.D * shape.R : shape.R);
  TORCH_CHECK(shape.type != cpu::FrozenType::kInt8 || inputs <= cpu::kMostInt8Inputs, kName,
              ": int8 weights take at most ", cpu::kMostInt8Inputs, " inputs, got ", inputs);
  TORCH_CHECK(int64_t(weights.size()) == sizes[0] * sizes[1] * kSlots, kName, ": expected ",
              sizes[0] * sizes[1] * kSlots, " weights, got ", weights.size());
  const Tensor packed = at::empty({int64_t(cpu::frozen_bytes(shape))}, at::kByte);
  char* const base = (char*)packed.mutable_data_ptr();
  write_header(shape, base);
  for (int i = 0; i < shape.layers * shape.D; ++i) {
    const auto* const given = &weights[size_t(i) * kSlots];
    const auto checked = [&](int slot, at::IntArrayRef size, at::ScalarType dtype) {
      if (!given[slot]) return Tensor();
      const Tensor w = plain(*given[slot], kName, "a weight").contiguous();
      TORCH_CHECK(w.sizes() == size && w.scalar_type() == dtype && w.device().is_cpu(), kName,
                  ": weight ", slot, " of layer and direction ", i, " must be ", dtype,
                  " of shape ", size, " on the CPU, got ", w.scalar_type(), " of shape ", w.sizes(),
                  " on ", w.device());
      return w;
    };
    const auto put = [&](const cpu::FrozenMatrix& m, int weight, int bias, int scale) {
      if (m.units == 0) return;
      const int64_t rows = m.gates * m.units;
      const Tensor w = checked(weight, {rows, m.inputs}, storage_of(shape.type));
      TORCH_CHECK(w.defined(), kName, ": a weight matrix is missing");
      if (shape.type == cpu::FrozenType::kInt8) {
        const int8_t* const first = w.const_data_ptr<int8_t>();
        TORCH_CHECK_VALUE(std::find(first, first + w.numel(), -128) == first + w.numel(), kName,
                          ": int8 weights must be within -127 .. 127, got -128 in weight ", weight,
                          " of layer and direction ", i);
      }
      const Tensor b = bias < 0 ? Tensor() : checked(bias, {rows}, at::kFloat);
      const Tensor s = scale < 0 ? Tensor() : checked(scale, {rows}, at::kFloat);
      TORCH_CHECK(s.defined() || shape.type != cpu::FrozenType::kInt8, kName,
                  ": the scales of int8 weights are missing");
      cpu::pack_frozen(shape.type, m,
                       {w.const_data_ptr(), b.defined() ? b.const_data_ptr<float>() : nullptr,
                        s.defined() ? s.const_data_ptr<float>() : nullptr},
                       base);
    };
    const cpu::FrozenDirection d = cpu::frozen_direction(shape, i / shape.D, i % shape.D);
    put(d.w_ih, kWeightIh, kBiasIh, kScaleIh);
    put(d.w_hh, kWeightHh, kBiasHh, kScaleHh);
    put(d.w_hr, kWeightHr, -1, -1);
  }
  return packed;
}

std::tuple<Tensor, Tensors> frozen_forward(const Tensor& packed, const Tensor& given,
                                           const std::optional<Tensors>& hx,
                                           const std::optional<Tensor>& lengths,
                                           const std::optional<Tensor>& batch_sizes,
                                           bool batch_first) {
  const Frozen f(packed);
  TORCH_CHECK_VALUE(batch_sizes ? given.dim() == 2 : given.dim() == 2 || given.dim() == 3, f.name(),
                    ": Expected input to be 2D or 3D, got ", given.dim(), "D instead");
  const Tensor x = f.input(given);
  const bool batched = batch_sizes || x.dim() == 3, ragged = lengths.has_value();
  TORCH_CHECK_VALUE(!ragged || (!batch_sizes && batched), f.name(),
                    ": lengths needs a padded input (T, B, I), got one ",
                    batch_sizes ? "packed" : "without a batch");
  const int time = x.dim() == 3 && batch_first ? 1 : 0, batch_dim = 1 - time;
  const int64_t T = batch_sizes ? batch_sizes->numel() : x.size(time);
  TORCH_CHECK(T > 0, "Expected sequence length to be larger than 0 in RNN");
  const int64_t batch = x.dim() == 3 ? x.size(batch_dim) : 1;
  const SortedRows sorted = batch_sizes
                                ? SortedRows{{}, step_offsets(f.name(), *batch_sizes, x.size(0))}
                            : ragged ? rows_of_lengths(f.name(), *lengths, T, batch)
                                     : SortedRows{{}, equal_offsets(T, batch)};
  const std::vector<int64_t>& offsets = sorted.offsets;
  const int64_t rows = batch_sizes ? offsets[1] : batch;

  Tensors states;
  if (hx) {
    for (const Tensor& h : *hx) states.push_back(plain(h, f.name(), "hx").contiguous());
    f.check_states(states, rows, batched);
    for (Tensor& h : states) {
      const Tensor initial = h;
      h = at::detail::empty_cpu(initial.sizes(), at::kFloat);
      std::memcpy(h.mutable_data_ptr(), initial.const_data_ptr(), initial.nbytes());
    }
  } else {
    for (int k = 0; k < f.cell().states; ++k) {
      at::DimVector size{f.rows(), f.width(k)};
      if (batched) size.insert(size.begin() + 1, rows);
      states.push_back(at::detail::empty_cpu(size, at::kFloat));
      std::memset(states.back().mutable_data_ptr(), 0, states.back().nbytes());
    }
  }
  at::DimVector size(x.sizes());
  size.back() = f.shape.D * f.shape.R;
  const Tensor output = empty_block(size, at::TensorOptions(at::kFloat));
  if (ragged) output.zero_();
  if (offsets.back() == 0) return {output, states};
  const float* const from = x.const_data_ptr<float>();
  float* const to = output.mutable_data_ptr<float>();
  cpu::FrozenRows<const float> x_rows{from, 0, x.stride(0), true};
  cpu::FrozenRows<float> out_rows{to, 0, output.stride(0), true};
  if (x.dim() == 3) {
    x_rows = rows_of(x, from, time, batch_dim);
    out_rows = rows_of(output, to, time, batch_dim);
  }
  f.run(x_rows, out_rows, rows, states, offsets.data(), int64_t(offsets.size()) - 1, offsets[1],
        sorted.order.empty() ? nullptr : sorted.order.data());
  return {output, states};
}

Tensor frozen_advance(const Tensor& packed, const Tensor& given, const Tensors& states,
                      const std::optional<Tensor>& out, bool batch_first) {
  const Frozen f(packed);
  TORCH_CHECK_VALUE(f.shape.D == 1, f.name(),
                    ": a bidirectional layer has no single steps, it needs the whole sequence");
  TORCH_CHECK_VALUE(given.dim() >= 1 && given.dim() <= 3, f.name(),
                    ": expected x of 1 to 3 dimensions, got ", given.dim());
  Tensor x = f.input(given);
  const bool batched = x.dim() > 1;
  const int time = x.dim() == 3 ? (batch_first ? 1 : 0) : -1;
  const int64_t T = time < 0 ? 1 : x.size(time);
  const int64_t batch = x.dim() == 3 ? x.size(1 - time) : batched ? x.size(0) : 1;
  for (const Tensor& h : states) {
    TORCH_CHECK(
        is_plain(h) && h.is_contiguous() && !h.requires_grad(), f.name(),
        ": states that are updated in place must be contiguous ordinary tensors that require "
        "no gradient");
  }
  f.check_states(states, batch, batched);
  at::DimVector size(x.sizes());
  size.back() = f.shape.R;
  if (out) {
    TORCH_CHECK(out->sizes() == at::IntArrayRef(size) && out->scalar_type() == at::kFloat &&
                    is_plain(*out) && out->device().is_cpu() && out->is_contiguous(),
                f.name(), ": out must be contiguous float32 of shape ", at::IntArrayRef(size),
                " on the CPU, got ", out->scalar_type(), " of shape ", out->sizes());
    TORCH_CHECK(!out->requires_grad(), f.name(), ": out must require no gradient");
  }
  Tensors written = states;
  if (out) written.push_back(*out);
  for (size_t i = 0; i < written.size(); ++i) {
    for (size_t k = 0; k < i; ++k)
      TORCH_CHECK(!share_memory(written[i], written[k]), f.name(),
                  ": states and out are written in place and must not share memory");
  }
  for (const Tensor& t : written) {
    if (share_memory(x, t)) x = x.clone();
  }
  const Tensor output = out ? *out : empty_block(size, at::TensorOptions(at::kFloat));
  if (T == 0 || batch == 0) return output;
  for (const Tensor& t : written) mark_written(t);
  const float* const from = x.const_data_ptr<float>();
  float* const to = output.mutable_data_ptr<float>();
  if (time < 0) {
    const int64_t offsets[] = {0, batch};
    const int64_t row = batched ? x.stride(0) : f.shape.I;
    f.run({from, 0, row, false}, {to, 0, f.shape.R, false}, batch, states, offsets, 1, batch,
          nullptr);
  } else {
    const std::vector<int64_t> offsets = equal_offsets(T, batch);
    f.run(rows_of(x, from, time, 1 - time), rows_of(output, to, time, 1 - time), batch, states,
          offsets.data(), T, batch, nullptr);
  }
  return output;
}

}  // namespace fastrnn
