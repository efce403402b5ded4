#include "cuda_call.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <atomic>

#include "../cuda/user_cells.h"
#include "cuda_context.h"

namespace fastrnn::cuda {

namespace {

// What override_plan asked for; read by calls on any thread. Rows below 0: nothing.
std::atomic<StepKernel> overriding{StepKernel{false, false, -1}};
static_assert(std::atomic<StepKernel>::is_always_lock_free);

// torch.backends.cudnn.rnn.fp32_precision, which decides for cuDNN's RNNs too. How the question is
// put has changed with torch's versions: with an enumerator, with a name, with nothing.
template <class Op>
bool allows_tf32(const at::Context& context, bool (at::Context::*ask)(std::optional<Op>) const) {
  return (context.*ask)(Op::RNN);
}
[[maybe_unused]] bool allows_tf32(const at::Context& context,
                                  bool (at::Context::*ask)(const std::string&) const) {
  return (context.*ask)("rnn");
}
[[maybe_unused]] bool allows_tf32(const at::Context& context, bool (at::Context::*ask)() const) {
  return (context.*ask)();
}

// torch.backends.cuda.matmul.fp32_precision: named by enumerators, by names, or, before torch 2.9,
// asked for by a question of its own, which later ones refuse to answer in some states.
template <class Backend, class Op, class Precision>
bool is_tf32(const at::Context& context, Precision (at::Context::*ask)(Backend, Op) const) {
  return (context.*ask)(Backend::CUDA, Op::MATMUL) == Precision::TF32;
}
[[maybe_unused]] bool is_tf32(const at::Context& context,
                              std::string (at::Context::*ask)(const std::string&,
                                                              const std::string&) const) {
  return (context.*ask)("cuda", "matmul") == "tf32";
}
template <class Settings>  // at::Context, of whatever version
bool matmul_uses_tf32(const Settings& settings) {
  if constexpr (requires { &Settings::float32Precision; }) {
    return is_tf32(settings, &Settings::float32Precision);
  } else {
    return settings.allowTF32CuBLAS();
  }
}

}  // namespace

bool uses_tf32(Dtype dtype, int64_t steps) {
  const at::Context& context = at::globalContext();
  if (dtype != Dtype::kFloat32 || !allows_tf32(context, &at::Context::allowTF32CuDNN)) return false;
  return steps > 1 || matmul_uses_tf32(context);
}

Call::Call(const char* function, const GivenTensors& tensors, at::IntArrayRef spec,
           at::ArrayRef<double> scalars)
    // A part of a sequence takes its states from the part before, and hands them on, as the kernels
    // have them: wide.
    : LayerArgs(function, tensors, spec, scalars, true),
      dtype(dtype_of(function, x)),
      tf32(uses_tf32(dtype, T)),
      shape{B, N, H, R, D},
      row_schedule{T, this->spec.forwards,
                   lengths.defined() ? lengths.const_data_ptr<int64_t>() : nullptr,
                   resets.defined() ? resets.const_data_ptr<bool>() : nullptr},
      schedule(offsets, this->spec.forwards) {
  const int number = this->spec.cell;
  TORCH_CHECK(number < kFirstUserCell || added<UserCell>().find(number) != nullptr, function, ": ",
              cell.mode, " has kernels for the CPU alone");
  TORCH_CHECK(Context::serves(x), function, ": x is on the wrong device, ", x.device());
  TORCH_CHECK(D * N < kMostRows, function,
              ": expected fewer than 2^31 rows in all directions, got ", N, " rows and ", D,
              " directions");
}

at::Tensor Call::empty(at::IntArrayRef sizes) const { return at::empty(sizes, options); }

at::Tensor Call::empty_accumulate(at::IntArrayRef sizes) const {
  return at::empty(sizes, accumulate_options());
}

at::Tensor Call::filled_by_steps(at::IntArrayRef sizes) const {
  return row_schedule.lengths ? at::zeros(sizes, options) : empty(sizes);
}

void override_plan(std::optional<StepKernel> kernel) {
  overriding = kernel.value_or(StepKernel{false, false, -1});
}

StepKernel Call::plan_for(bool backward, int capability) const {
  const StepKernel kernel = overriding;
  const bool masked = operand_mask.defined();
  const bool is_free = cell.recurrent && cell.statistics == 0 && !(backward ? projected : masked);
  if (kernel.rows >= 0 && is_free) return kernel;
  return plan(query(backward, capability));
}

PlanQuery Call::query(bool backward, int capability) const {
  const PlannedLayer layer{spec.cell, B, H, R, D, T, operand_mask.defined(), zoned};
  return {layer, dtype, tf32, backward, capability};
}

at::Tensor Call::moments(cudaStream_t stream) const {
  if (!row_schedule.masked()) return {};
  at::Tensor made = at::empty({D, T + 2, B}, options.dtype(at::kByte));
  const cudaError_t error =
      write_moments(made.mutable_data_ptr<uint8_t>(), row_schedule, B, D, stream);
  TORCH_CHECK(error == cudaSuccess, function, ": ", Context::error_text(error),
              " in the launch that reads lengths and resets");
  return made;
}

void Call::report(const Status& status) const {
  TORCH_CHECK(status.error == cudaSuccess, function, ": ", Context::error_text(status.error),
              " in ", status.kernel);
}

Matrix matrix(const at::Tensor& tensor) {
  // The stride of a single row means nothing to torch, and could be too small for a BLAS.
  const int64_t stride = tensor.size(0) == 1 ? tensor.size(1) : tensor.stride(0);
  return {tensor.data_ptr(), tensor.size(0), tensor.size(1), stride};
}

Matrix matrix(const at::Tensor& tensor, int64_t d) {
  const int64_t rows = tensor.size(1), cols = tensor.size(2);
  return {data(tensor, d * rows * cols), rows, cols, cols};
}

void* data(const at::Tensor& tensor, int64_t first) {
  if (!tensor.defined()) return nullptr;
  return static_cast<char*>(tensor.data_ptr()) + first * tensor.itemsize();
}

void* data(const Tensors& tensors, size_t index) {
  return index < tensors.size() ? data(tensors[index]) : nullptr;
}

}  // namespace fastrnn::cuda
