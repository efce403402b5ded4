#include <ATen/ops/sum.h>

#include "cuda_context.h"
#include "cuda_gates.h"
#include "cuda_layer.h"
#include "cuda_rows.h"
#include "cuda_tier.h"
#include "gate.h"

namespace fastrnn::cuda {

namespace {

// The arrays of the step kernels that only backward has.
struct Buffers {
  at::Tensor grad_x_gates, grad_h_gates, direct, grad_cell, grad_h0, product, grad_full,
      grad_projected;
  Tensors w_hh_t;

  Buffers(const Call& call, const Tensors& grad_hn, const StepKernel& kernel, Tier tier) {
    const Shape& s = call.shape;
    const int64_t D = s.directions, B = s.batch, N = s.total, H = s.hidden, R = s.recurrent;
    grad_x_gates = call.filled_by_steps({D, N, call.cell.gates * H});
    grad_h_gates = call.cell.shared_gate_grad ? grad_x_gates
                                              : call.filled_by_steps({D, N, call.cell.gates * H});
    if (call.cell.direct_grad) direct = call.empty_accumulate({D, B, H});
    if (call.cell.states == 2) grad_cell = call.empty_accumulate({D, B, H});
    grad_h0 = call.empty({D, B, R});
    // Which is all that reaches the states of a row without any step.
    if (call.lengths.defined()) grad_h0.copy_(grad_hn[0]);
    if (grad_cell.defined() && (call.lengths.defined() || call.c_type)) {
      grad_cell.copy_(grad_hn[1]);
    }
    if (call.projected) {
      grad_full = call.empty({D, B, H});
      grad_projected = call.filled_by_steps({D, N, R});
    }
    if (tier != Tier::kStep) return;
    if (!kernel.fused) {
      product = call.empty({D, B, R});
      return;
    }
    for (const DirectionTensors& w : call.weights) w_hh_t.push_back(w.w_hh.t().contiguous());
  }
};

Tensors weight_gradients(const Call& call, const Buffers& b, const at::Tensor& output,
                         const at::Tensor& full, Library& library) {
  Tensors grads;
  const auto product = [&](const at::Tensor& left, const at::Tensor& right) {
    grads.push_back(call.empty({left.size(1), right.size(1)}));
    library.product(matrix(grads.back()), matrix(left), matrix(right), Transpose::kLeft, false);
  };
  const at::Tensor x = existing_x(call);
  for (int64_t d = 0; d < call.shape.directions; ++d) {
    product(b.grad_x_gates[d], x);
    product(b.grad_h_gates[d], previous_h(call, output, d));
    if (call.biases) {
      // torch sums a column in a fixed order, in float32 for the 16-bit types.
      const at::Tensor sum = b.grad_x_gates[d].sum(0);
      grads.push_back(sum);
      grads.push_back(call.cell.shared_gate_grad ? sum.clone() : b.grad_h_gates[d].sum(0));
    }
    if (call.projected) product(b.grad_projected[d], full[d]);
  }
  return grads;
}

}  // namespace

std::tuple<std::optional<at::Tensor>, std::optional<Tensors>, std::optional<Tensors>>
layer_backward(int cell, const at::Tensor& grad_output_any, const Tensors& grad_hn_any,
               const at::Tensor& x, const std::optional<at::Tensor>& batch_sizes, const Tensors& hx,
               const Tensors& weights, const at::Tensor& output_any, const Tensors& saved,
               std::array<bool, 3> needs, const Timing& timing) {
  const Call call("fastrnn.cuda.layer_backward", cell, x, batch_sizes, hx, weights, timing);
  const Shape& s = call.shape;
  const Context context(call.x, call.dtype, call.tf32);
  const StepKernel kernel = call.plan_for(true, context.device().capability);
  const at::Tensor moments = call.moments(context.stream());
  const ResidentMemory memory(call, team_for(call, true, context), true, context.stream());

  const std::vector<int64_t> output_shape = call.rows_shape(s.directions * s.recurrent);
  const at::Tensor grad_output = call.checked(grad_output_any, "grad_output", output_shape);
  const at::Tensor output =
      call.checked(output_any, "output", output_shape).view({s.total, s.directions * s.recurrent});
  Tensors grad_hn = grad_hn_any;
  at::Tensor grad_cell_output;
  if (call.cell.states == 2 && grad_hn.size() == 3) {
    grad_cell_output =
        call.checked(grad_hn[2], "grad_hn[2]", call.rows_shape(s.directions * s.hidden));
    grad_hn.pop_back();
  }
  grad_hn = call.checked_states(grad_hn, "grad_hn");
  const size_t saves_gates = call.cell.saved > 0, has_cells = call.cell.saves_c;
  const size_t states = has_cells + call.projected, has_gates = saved.size() > states;
  TORCH_CHECK(saved.size() == states || saved.size() == states + saves_gates, call.function,
              ": saved must have ", states + saves_gates,
              " tensors from a forward call with save=1, or ", states,
              " from one with save=2, got ", saved.size());
  const auto expect = [&](size_t i, at::IntArrayRef sizes) {
    TORCH_CHECK(is_plain(saved[i]) && saved[i].sizes() == sizes && saved[i].is_contiguous(),
                call.function, ": saved[", i, "] must be contiguous and of shape ", sizes, ", got ",
                saved[i].sizes());
  };
  if (has_gates) expect(0, {s.directions, s.total, call.cell.saved, s.hidden});
  if (has_cells) expect(has_gates, {s.directions, s.total, s.hidden});
  if (call.projected) expect(saved.size() - 1, {s.directions, s.total, s.hidden});
  const at::Tensor full = call.projected ? saved.back() : at::Tensor();
  at::Tensor gates;
  if (saves_gates) gates = has_gates ? saved[0] : rebuilt_gates(call, output, context);

  const Buffers b(call, grad_hn, kernel, memory.resident.team.tier);
  LayerBackward layer{call.number, call.dtype, kernel, call.schedule, {}};
  layer.grad_h0 = needs[1];
  layer.resident = memory.resident;
  BackwardStep& p = layer.step;
  p.shape = s;
  p.moments = static_cast<const uint8_t*>(data(moments));
  p.grad_output = grad_output.data_ptr();
  p.grad_hn = grad_hn[0].data_ptr();
  p.grad_cn = call.c_type ? nullptr : data(grad_hn, 1);
  p.grad_cell_output = data(grad_cell_output);
  p.h0 = call.hx[0].data_ptr();
  p.c0 = data(call.hx, 1);
  p.wide_c = call.c_type.has_value();
  p.output = output.data_ptr();
  p.saved = data(gates);
  p.cell = has_cells ? saved[has_gates].data_ptr() : nullptr;
  p.product = data(b.product);
  p.grad_full = data(b.grad_full);
  p.grad_x_gates = b.grad_x_gates.data_ptr();
  p.grad_h_gates = b.grad_h_gates.data_ptr();
  p.direct = data(b.direct);
  p.grad_cell = data(b.grad_cell);
  p.grad_h0 = b.grad_h0.data_ptr();
  p.grad_projected = data(b.grad_projected);
  for (int64_t d = 0; d < s.directions; ++d) {
    p.w_hh_t[d] = data(b.w_hh_t, d);
    layer.w_hh[d] = call.weights[d].w_hh.data_ptr();
    layer.w_hr[d] = data(call.weights[d].w_hr);
  }
  call.report(run(layer, context.blas(), context.stream()));

  std::optional<at::Tensor> grad_x;
  if (needs[0]) {
    grad_x = call.empty(x.sizes());
    for (int64_t d = 0; d < s.directions; ++d) {
      context.blas().product(matrix(grad_x->view({s.total, x.size(-1)})), matrix(b.grad_x_gates[d]),
                             matrix(call.weights[d].w_ih), Transpose::kNeither, d > 0);
    }
  }
  std::optional<Tensors> grad_hx, grad_weights;
  if (needs[1]) {
    grad_hx = Tensors{b.grad_h0};
    if (has_cells) grad_hx->push_back(b.grad_cell.to(call.hx[1].scalar_type()));
  }
  if (needs[2]) grad_weights = weight_gradients(call, b, output, full, context.blas());
  return {grad_x, grad_hx, grad_weights};
}

}  // namespace fastrnn::cuda
