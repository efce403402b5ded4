#include <ATen/ops/empty.h>

#include "cuda_context.h"
#include "cuda_gates.h"
#include "cuda_layer.h"
#include "cuda_rows.h"
#include "cuda_tier.h"

namespace fastrnn::cuda {

std::tuple<at::Tensor, Tensors, Tensors> layer_forward(const GivenTensors& tensors,
                                                       at::IntArrayRef spec,
                                                       at::ArrayRef<double> scalars) {
  const Call call("fastrnn.cuda.layer_forward", tensors, spec, scalars);
  const Shape& s = call.shape;
  const Save save = call.spec.save;
  const int states = call.cell.states;
  const Context context(call.x, call.dtype, call.tf32);
  const StepKernel kernel = call.plan_for(false, context.device().capability);
  const at::Tensor moments = call.moments(context.stream());
  const ResidentMemory memory(call, team_for(call, false, context), false, context.stream());
  const int64_t GH = call.cell.gates * s.hidden;

  // Without its bias, which the update adds in the accumulate type.
  const at::Tensor x_gates = input_product(call, context.blas());

  const at::Tensor output = call.filled_by_steps({s.total, s.directions * s.recurrent});
  Tensors last;
  for (const at::Tensor& state : call.hx)  // which is what a row without any step ends with
    last.push_back(call.lengths.defined() ? state.clone()
                                          : at::empty(state.sizes(), state.options()));
  for (int k = 1; call.spec.all_states && k < states; ++k)
    last.push_back(call.filled_by_steps(call.rows_shape(s.directions * s.hidden)));
  at::Tensor gates, carried, given, statistics, emitting, full, product, product_h0, operand;
  const bool save_gates = save == Save::kEverything && call.cell.saved > 0;
  if (save_gates && call.cell.saved == call.cell.gates) {
    gates = x_gates;  // each unit's are read before its own are written
  } else if (save_gates) {
    gates = call.empty({s.directions, s.total, call.cell.saved * s.hidden});
  }
  const int64_t carried_rows = save == Save::kNothing ? s.batch : s.total;
  if (states > 1)
    carried = call.empty_accumulate({s.directions, carried_rows, states - 1, s.hidden});
  if (save != Save::kNothing && call.zoned && call.cell.read_next > 0)
    given = call.empty_accumulate({s.directions, s.total, call.cell.read_next, s.hidden});
  if (save != Save::kNothing && call.cell.statistics > 0)
    statistics = call.empty_accumulate({s.directions, s.total, call.cell.statistics});
  if (call.cell.norms_state())
    emitting = call.empty_accumulate({s.directions, s.batch, 2, s.hidden});
  if (call.projected) full = call.filled_by_steps({s.directions, s.total, s.hidden});
  if (!kernel.fused && call.cell.recurrent && memory.resident.team.tier == Tier::kStep) {
    const bool masked = call.operand_mask.defined();
    product = call.empty({s.directions, s.batch, GH});
    if (masked) operand = call.empty({s.directions, s.batch, s.recurrent});
    if (!masked && call.row_schedule.masked()) product_h0 = call.empty({s.directions, s.batch, GH});
  }

  LayerForward layer{call.spec.cell, call.dtype, kernel, call.schedule, {}};
  layer.resident = memory.resident;
  layer.lengths = call.lengths.defined();
  ForwardStep& p = layer.step;
  call.describe(p);
  p.moments = static_cast<const uint8_t*>(data(moments));
  p.x_gates = x_gates.data_ptr();
  p.output = output.data_ptr();
  p.product = data(product);
  p.product_h0 = data(product_h0);
  p.operand_mask = data(call.operand_mask);
  p.operand = data(operand);
  p.h_stride = call.projected ? s.hidden : s.directions * s.recurrent;
  p.saved = data(gates);
  p.given = data(given);
  p.statistics = data(statistics);
  p.emitting = data(emitting);
  for (int k = 0; k < states; ++k) {
    p.states.initial[k] = call.hx[k].data_ptr();
    p.states.last[k] = last[k].data_ptr();
    if (k > 0) p.states.sequence[k] = data(last, states + k - 1);
  }
  p.states.carried = data(carried);
  p.states.wide = call.carried_type.has_value();
  p.carried_rows = carried_rows;
  for (int64_t d = 0; d < s.directions; ++d) {
    p.w_hh[d] = data(call.weight(d, kWhh));
    p.b_ih[d] = data(call.weight(d, kBih));
    p.b_hh[d] = data(call.weight(d, kBhh));
    p.h[d] = call.projected ? data(full, d * s.total * s.hidden) : data(output, d * s.recurrent);
    layer.w_hr[d] = data(call.weight(d, kWhr));
  }
  call.report(run(layer, context.blas(), context.stream()));
  if (call.projected && call.lengths.defined()) write_final_h(call, output, last[0]);

  Tensors saved;
  if (save != Save::kNothing) {
    if (gates.defined()) gates = gates.view({s.directions, s.total, call.cell.saved, s.hidden});
    if (!call.cell.saves_carried) carried = at::Tensor();
    for (const at::Tensor& tensor : {gates, carried, given, statistics, full}) {
      if (tensor.defined()) saved.push_back(tensor);
    }
  }
  return {output.view(call.rows_shape(output.size(1))), last, saved};
}

}  // namespace fastrnn::cuda
