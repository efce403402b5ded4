#include "cuda_call.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>

#include "../cuda/plan.h"
#include "cuda_context.h"

namespace fastrnn::cuda {

namespace {

std::optional<StepKernel> overriding;

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

Schedule schedule_of(const char* function, const at::Tensor& x,
                     const std::optional<at::Tensor>& batch_sizes) {
  if (!batch_sizes) {
    TORCH_CHECK(x.dim() == 3, function, ": x must be of shape (T, B, I), got ", x.sizes());
    return {x.size(0), x.size(1)};
  }
  const at::Tensor& sizes = *batch_sizes;
  TORCH_CHECK(x.dim() == 2, function, ": x must be of shape (N, I) with batch_sizes, got ",
              x.sizes());
  TORCH_CHECK(sizes.dim() == 1 && sizes.scalar_type() == at::kLong && sizes.is_cpu() &&
                  sizes.is_contiguous(),
              function, ": batch_sizes must be a contiguous int64 CPU tensor of shape (T,), got ",
              sizes.toString(), " of shape ", sizes.sizes());
  const int64_t* size = sizes.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < sizes.numel(); ++t) {
    TORCH_CHECK(size[t] > 0 && (t == 0 || size[t] <= size[t - 1]), function,
                ": batch_sizes must be positive and not increase, got ", size[t], " at index ", t);
  }
  const Schedule schedule(size, sizes.numel());
  TORCH_CHECK(schedule.total() == x.size(0), function, ": batch_sizes must sum to N = ", x.size(0),
              ", got ", schedule.total());
  return schedule;
}

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

CellInfo info_of(const char* function, int cell) {
  TORCH_CHECK(0 <= cell && cell < kCellCount, function, ": cell must be 0 to ", kCellCount - 1,
              ", got ", cell);
  return kCells[cell];
}

}  // namespace

Call::Call(const char* function, int cell, const at::Tensor& x_any,
           const std::optional<at::Tensor>& batch_sizes, const Tensors& hx_any,
           const Tensors& weights_any)
    : function(function),
      cell(cell),
      info(info_of(function, cell)),
      dtype(dtype_of(function, x_any)),
      tf32(dtype == Dtype::kFloat32 &&
           allows_tf32(at::globalContext(), &at::Context::allowTF32CuDNN)),
      schedule(schedule_of(function, x_any, batch_sizes)) {
  TORCH_CHECK(Context::serves(x_any), function, ": x is on the wrong device, ", x_any.device());
  TORCH_CHECK(schedule.steps() > 0 && schedule.rows(0, 0).count > 0, function,
              ": x must have at least one step and one row, got ", x_any.sizes());
  x = x_any.contiguous().view({schedule.total(), x_any.size(-1)});

  TORCH_CHECK(hx_any.size() == static_cast<size_t>(info.states), function, ": hx must have ",
              info.states, " tensors for ", info.mode, ", got ", hx_any.size());
  TORCH_CHECK(hx_any[0].dim() == 3, function, ": hx[0] must be of shape (D, B, R), got ",
              hx_any[0].sizes());
  const int64_t D = hx_any[0].size(0), B = schedule.rows(0, 0).count, R = hx_any[0].size(2);
  TORCH_CHECK(D == 1 || D == kMaxDirections, function, ": D must be 1 or 2, got ", D);
  const size_t each = weights_any.size() / D;
  TORCH_CHECK(each >= 2 && each <= 5 && each * D == weights_any.size(), function,
              ": weights must hold 2 to 5 tensors for each of D = ", D, " directions, got ",
              weights_any.size());
  biased = each >= 4;
  projected = each % 2 == 1;
  TORCH_CHECK(!projected || info.states == 2, function, ": only an LSTM can be projected, got ",
              info.mode);
  TORCH_CHECK(weights_any[0].dim() == 2 && weights_any[0].size(0) % info.gates == 0, function,
              ": weights[0] must be of shape (G*H, I) with G = ", info.gates, ", got ",
              weights_any[0].sizes());
  const int64_t H = weights_any[0].size(0) / info.gates, I = x.size(1), GH = info.gates * H;
  TORCH_CHECK(projected || R == H, function, ": hx[0] must have H = ", H, " columns, got ", R);
  shape = {B, schedule.total(), H, R, D};

  hx.push_back(checked(hx_any[0], "hx[0]", {D, B, R}));
  if (info.states == 2) hx.push_back(checked(hx_any[1], "hx[1]", {D, B, H}));
  for (int64_t d = 0; d < D; ++d) {
    const at::Tensor* next = &weights_any[d * each];
    Weights& w = weights.emplace_back();
    w.w_ih = checked(*next++, "w_ih", {GH, I});
    w.w_hh = checked(*next++, "w_hh", {GH, R});
    if (biased) {
      w.b_ih = checked(*next++, "b_ih", {GH});
      w.b_hh = checked(*next++, "b_hh", {GH});
    }
    if (projected) w.w_hr = checked(*next++, "w_hr", {R, H});
  }
}

at::Tensor Call::empty(at::IntArrayRef sizes) const { return at::empty(sizes, x.options()); }

at::Tensor Call::empty_accumulate(at::IntArrayRef sizes) const {
  return at::empty(sizes, x.options().dtype(dtype == Dtype::kFloat64 ? at::kDouble : at::kFloat));
}

at::Tensor Call::checked(const at::Tensor& tensor, const char* name, at::IntArrayRef sizes) const {
  TORCH_CHECK(tensor.defined(), function, ": ", name, " is missing");
  TORCH_CHECK(tensor.sizes() == sizes && tensor.scalar_type() == x.scalar_type() &&
                  tensor.device() == x.device(),
              function, ": ", name, " must be ", x.scalar_type(), " of shape ", sizes, " on ",
              x.device(), ", got ", tensor.scalar_type(), " of shape ", tensor.sizes(), " on ",
              tensor.device());
  return tensor.contiguous();
}

void override_plan(std::optional<StepKernel> kernel) { overriding = kernel; }

StepKernel Call::plan_for(bool backward, int capability) const {
  if (overriding && !(backward && projected)) return *overriding;
  return plan({cell, dtype, tf32, backward, shape.batch, shape.hidden, shape.recurrent,
               shape.directions, capability});
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
