#include "cuda_call.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "../cuda/plan.h"
#include "cuda_context.h"

namespace fastrnn::cuda {

namespace {

std::optional<StepKernel> overriding;

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

// float32 where c is float32 beside 16-bit tensors: a part of a sequence takes c from the part
// before, and hands it on, as the kernels have it.
std::optional<at::ScalarType> wide_c_of(const at::Tensor& x, const Tensors& hx) {
  const bool wide = x.element_size() == 2 && hx.size() == 2 && hx[1].scalar_type() == at::kFloat;
  return wide ? std::optional(at::kFloat) : std::nullopt;
}

}  // namespace

Dtype dtype_of(const char* function, const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kDouble:
      return Dtype::kFloat64;
    case at::kFloat:
      return Dtype::kFloat32;
    case at::kBFloat16:
      return Dtype::kBFloat16;
    case at::kHalf:
      return Dtype::kFloat16;
    default:
      TORCH_CHECK(false, function, ": x must be float64, float32, bfloat16 or float16, got ",
                  x.scalar_type());
  }
}

bool uses_tf32(Dtype dtype, int64_t steps) {
  const at::Context& context = at::globalContext();
  if (dtype != Dtype::kFloat32 || !allows_tf32(context, &at::Context::allowTF32CuDNN)) return false;
  return steps > 1 || matmul_uses_tf32(context);
}

Call::Call(const char* function, int number, const at::Tensor& x_given,
           const std::optional<at::Tensor>& batch_sizes, const Tensors& hx_given,
           const Tensors& weights_given, const Timing& timing)
    : LayerArgs(function, number, x_given, batch_sizes, hx_given, weights_given, timing,
                wide_c_of(x_given, hx_given)),
      number(number),
      dtype(dtype_of(function, x)),
      tf32(uses_tf32(dtype, T)),
      shape{B, N, H, R, D},
      course{T, reverse, lengths.defined() ? lengths.const_data_ptr<int64_t>() : nullptr,
             resets.defined() ? resets.const_data_ptr<bool>() : nullptr},
      schedule(offsets, reverse) {
  TORCH_CHECK(Context::serves(x), function, ": x is on the wrong device, ", x.device());
}

at::Tensor Call::empty(at::IntArrayRef sizes) const { return at::empty(sizes, options); }

at::Tensor Call::empty_accumulate(at::IntArrayRef sizes) const {
  return at::empty(sizes, options.dtype(dtype == Dtype::kFloat64 ? at::kDouble : at::kFloat));
}

at::Tensor Call::filled_by_steps(at::IntArrayRef sizes) const {
  return course.lengths ? at::zeros(sizes, options) : empty(sizes);
}

void override_plan(std::optional<StepKernel> kernel) { overriding = kernel; }

StepKernel Call::plan_for(bool backward, int capability) const {
  if (overriding && !(backward && projected)) return *overriding;
  return plan({number, dtype, tf32, backward, shape.batch, shape.hidden, shape.recurrent,
               shape.directions, capability});
}

at::Tensor Call::moments(cudaStream_t stream) const {
  if (!course.masked()) return {};
  at::Tensor made = at::empty({D, T + 2, B}, options.dtype(at::kByte));
  const cudaError_t error = write_moments(made.mutable_data_ptr<uint8_t>(), course, B, D, stream);
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

void* data(const at::Tensor& tensor) { return tensor.defined() ? tensor.data_ptr() : nullptr; }

void* data(const Tensors& tensors, size_t index) {
  return index < tensors.size() ? data(tensors[index]) : nullptr;
}

}  // namespace fastrnn::cuda
