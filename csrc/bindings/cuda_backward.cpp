#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include "cuda_context.h"
#include "cuda_gates.h"
#include "cuda_layer.h"
#include "cuda_rows.h"
#include "cuda_tier.h"
#include "gate.h"

namespace fastrnn::cuda {

namespace {

// Of grad_params: with norms a bias is no part of what its gate's gradient is of.
int64_t bias_rows(const Call& call) { return call.cell.statistics > 0 ? 2 * call.cell.gates : 0; }

// The arrays of the step kernels that only backward has.
struct Buffers {
  at::Tensor grad_x_gates, grad_h_gates, direct, grad_params, grad_h0, product, grad_full,
      grad_projected;
  Tensors grad_carried, w_hh_t;  // by state from 1 on; by direction

  Buffers(const Call& call, const Tensors& grad_last, const StepKernel& kernel, Tier tier) {
    const Shape& s = call.shape;
    const int64_t D = s.directions, B = s.batch, N = s.total, H = s.hidden, R = s.recurrent;
    grad_x_gates = call.filled_by_steps({D, N, call.cell.gates * H});
    grad_h_gates = call.cell.shared_gate_grad ? grad_x_gates
                                              : call.filled_by_steps({D, N, call.cell.gates * H});
    if (call.cell.direct_grad || call.zoned) direct = call.empty_accumulate({D, B, H});
    grad_h0 = call.empty({D, B, R});
    // Which is all that reaches the states of a row without any step.
    if (call.lengths.defined()) grad_h0.copy_(grad_last[0]);
    for (int k = 1; k < call.cell.states; ++k) {
      grad_carried.push_back(call.empty_accumulate({D, B, H}));
      if (call.lengths.defined() || call.carried_type) grad_carried.back().copy_(grad_last[k]);
    }
    const int64_t rows = bias_rows(call) + call.cell.all_param_rows();
    if (rows > 0) grad_params = at::zeros({D, B, rows, H}, call.accumulate_options());
    if (call.projected) {
      grad_full = call.empty({D, B, H});
      grad_projected = call.filled_by_steps({D, N, R});
    }
    if (tier != Tier::kStep) return;
    if (!kernel.fused) {
      if (call.cell.recurrent) product = call.empty({D, B, R});
      return;
    }
    for (int64_t d = 0; d < D; ++d) w_hh_t.push_back(call.weight(d, kWhh).t().contiguous());
  }
};

OptionalTensors weight_gradients(const Call& call, const Buffers& b, const at::Tensor& output,
                                 const at::Tensor& full, Library& library) {
  OptionalTensors grads(call.D * call.slots());
  const auto product = [&](const at::Tensor& left, const at::Tensor& right) {
    const at::Tensor grad = call.empty({left.size(1), right.size(1)});
    library.product(matrix(grad), matrix(left), matrix(right), Transpose::kLeft, false);
    return grad;
  };
  const at::Tensor x = existing_x(call);
  for (int64_t d = 0; d < call.D; ++d) {
    const auto to = grads.begin() + d * call.slots();
    to[kWih] = product(b.grad_x_gates[d], x);
    if (call.cell.recurrent) to[kWhh] = product(b.grad_h_gates[d], operands(call, output, d));
    const auto of_units = [&](int64_t first, int64_t rows) {
      return b.grad_params[d].narrow(1, first, rows).sum(0).flatten().to(call.x_type());
    };
    if (call.biases && bias_rows(call) > 0) {
      to[kBih] = of_units(0, call.cell.gates);
      to[kBhh] = of_units(call.cell.gates, call.cell.gates);
    } else if (call.biases) {
      // torch sums a column in a fixed order, in float32 for the 16-bit types.
      const at::Tensor sum = b.grad_x_gates[d].sum(0);
      to[kBih] = sum;
      to[kBhh] = call.cell.shared_gate_grad ? sum.clone() : b.grad_h_gates[d].sum(0);
    }
    if (call.projected) to[kWhr] = product(b.grad_projected[d], full[d]);
    int64_t first = bias_rows(call);
    for (int k = 0; k < call.cell.params; first += call.cell.param_rows(k++))
      to[kFirstParam + k] = of_units(first, call.cell.param_rows(k));
  }
  return grads;
}

}  // namespace

std::tuple<std::optional<at::Tensor>, std::optional<Tensors>, std::optional<OptionalTensors>>
layer_backward(const OptionalTensors& grads, const GivenTensors& tensors, const Tensors& results,
               at::IntArrayRef spec, at::ArrayRef<double> scalars, std::array<bool, 3> needs) {
  const Call call("fastrnn.cuda.layer_backward", tensors, spec, scalars);
  const Shape& s = call.shape;
  const LayerResults r(call, grads, results, true);
  const Context context(call.x, call.dtype, call.tf32);
  const StepKernel kernel = call.plan_for(true, context.device().capability);
  const at::Tensor moments = call.moments(context.stream());
  const ResidentMemory memory(call, team_for(call, true, context), true, context.stream());
  const at::Tensor output = r.output.view({s.total, s.directions * s.recurrent});
  at::Tensor gates = r.gates;
  if (call.cell.saved > 0 && !gates.defined())
    gates = rebuilt_gates(call, output, r.carried, context);

  const Buffers b(call, r.grad_last, kernel, memory.resident.team.tier);
  LayerBackward layer{call.spec.cell, call.dtype, kernel, call.schedule, {}};
  layer.grad_h0 = needs[1];
  layer.resident = memory.resident;
  BackwardStep& p = layer.step;
  call.describe(p);
  p.moments = static_cast<const uint8_t*>(data(moments));
  p.grad_output = r.grad_output.data_ptr();
  p.output = output.data_ptr();
  p.saved = data(gates);
  p.operand_mask = data(call.operand_mask);
  p.given = data(r.given);
  p.statistics = data(r.statistics);
  for (int k = 0; k < call.cell.states; ++k) {
    p.states.initial[k] = call.hx[k].data_ptr();
    if (k == 0 || !call.carried_type) p.states.grad_last[k] = r.grad_last[k].data_ptr();
    if (k == 0) continue;
    p.states.grad_sequence[k] = data(r.grad_sequences, k - 1);
    p.grad_carried[k] = b.grad_carried[k - 1].data_ptr();
  }
  p.states.carried = data(r.carried);
  p.states.wide = call.carried_type.has_value();
  p.states.grad_initial[0] = b.grad_h0.data_ptr();
  p.product = data(b.product);
  p.grad_full = data(b.grad_full);
  p.grad_x_gates = b.grad_x_gates.data_ptr();
  p.grad_h_gates = b.grad_h_gates.data_ptr();
  p.direct = data(b.direct);
  p.grad_params = data(b.grad_params);
  p.grad_projected = data(b.grad_projected);
  for (int64_t d = 0; d < s.directions; ++d) {
    p.w_hh_t[d] = data(b.w_hh_t, d);
    layer.w_hh[d] = data(call.weight(d, kWhh));
    layer.w_hr[d] = data(call.weight(d, kWhr));
  }
  call.report(run(layer, context.blas(), context.stream()));

  std::optional<at::Tensor> grad_x;
  if (needs[0]) {
    grad_x = call.empty(call.x.sizes());
    for (int64_t d = 0; d < s.directions; ++d) {
      context.blas().product(matrix(grad_x->view({s.total, call.I})), matrix(b.grad_x_gates, d),
                             matrix(call.weight(d, kWih)), Transpose::kNeither, d > 0);
    }
  }
  std::optional<Tensors> grad_hx;
  if (needs[1]) {
    grad_hx = Tensors{b.grad_h0};
    for (size_t k = 0; k < b.grad_carried.size(); ++k)
      grad_hx->push_back(b.grad_carried[k].to(call.hx[k + 1].scalar_type()));
  }
  std::optional<OptionalTensors> grad_weights;
  if (needs[2]) grad_weights = weight_gradients(call, b, output, r.hidden, context.blas());
  return {grad_x, grad_hx, grad_weights};
}

}  // namespace fastrnn::cuda
