#include <ATen/ops/empty_like.h>

#include "cuda_context.h"
#include "cuda_gates.h"
#include "cuda_layer.h"
#include "cuda_rows.h"
#include "cuda_tier.h"

namespace fastrnn::cuda {

std::tuple<at::Tensor, Tensors, Tensors> layer_forward(int cell, const at::Tensor& x,
                                                       const std::optional<at::Tensor>& batch_sizes,
                                                       const Tensors& hx, const Tensors& weights,
                                                       Save save, const Timing& timing,
                                                       bool cells_wanted) {
  const Call call("fastrnn.cuda.layer_forward", cell, x, batch_sizes, hx, weights, timing);
  const Shape& s = call.shape;
  TORCH_CHECK(!cells_wanted || call.cell.states == 2, call.function, ": cells needs an LSTM, got ",
              call.cell.mode);
  TORCH_CHECK(save >= Save::kNothing && save <= Save::kStates, call.function,
              ": save must be 0 (nothing), 1 (everything) or 2 (states), got ",
              static_cast<int>(save));
  const Context context(call.x, call.dtype, call.tf32);
  const StepKernel kernel = call.plan_for(false, context.device().capability);
  const at::Tensor moments = call.moments(context.stream());
  const ResidentMemory memory(call, team_for(call, false, context), false, context.stream());
  const int64_t GH = call.cell.gates * s.hidden;

  // Without its bias, which the update adds in the accumulate type.
  const at::Tensor x_gates = input_product(call, context.blas());

  const at::Tensor output = call.filled_by_steps({s.total, s.directions * s.recurrent});
  Tensors hn;
  for (const at::Tensor& state : call.hx)  // which is what a row without any step ends with
    hn.push_back(call.lengths.defined() ? state.clone() : at::empty_like(state));
  if (cells_wanted) hn.push_back(call.filled_by_steps(call.rows_shape(s.directions * s.hidden)));
  at::Tensor gates, cells, full, product, product_h0;
  const bool save_gates = save == Save::kEverything && call.cell.saved > 0;
  if (save_gates && call.cell.saved == call.cell.gates) {
    gates = x_gates;  // each unit's are read before its own are written
  } else if (save_gates) {
    gates = call.empty({s.directions, s.total, call.cell.saved * s.hidden});
  }
  const int64_t cell_rows = save == Save::kNothing ? s.batch : s.total;
  if (call.cell.states == 2) cells = call.empty_accumulate({s.directions, cell_rows, s.hidden});
  if (call.projected) full = call.filled_by_steps({s.directions, s.total, s.hidden});
  if (!kernel.fused) {
    product = call.empty({s.directions, s.batch, GH});
    if (call.course.masked()) product_h0 = call.empty({s.directions, s.batch, GH});
  }

  LayerForward layer{call.number, call.dtype, kernel, call.schedule, {}};
  layer.resident = memory.resident;
  layer.lengths = call.lengths.defined();
  ForwardStep& p = layer.step;
  p.shape = s;
  p.moments = static_cast<const uint8_t*>(data(moments));
  p.x_gates = x_gates.data_ptr();
  p.h0 = call.hx[0].data_ptr();
  p.c0 = data(call.hx, 1);
  p.wide_c = call.c_type.has_value();
  p.output = output.data_ptr();
  p.product = data(product);
  p.product_h0 = data(product_h0);
  p.h_stride = call.projected ? s.hidden : s.directions * s.recurrent;
  p.saved = data(gates);
  p.cell = data(cells);
  p.cell_rows = cell_rows;
  p.hn = hn[0].data_ptr();
  p.cn = data(hn, 1);
  p.cell_output = data(hn, 2);
  for (int64_t d = 0; d < s.directions; ++d) {
    const DirectionTensors& w = call.weights[d];
    p.w_hh[d] = w.w_hh.data_ptr();
    p.b_ih[d] = data(w.b_ih);
    p.b_hh[d] = data(w.b_hh);
    p.h[d] = call.projected ? full[d].data_ptr()
                            : output.narrow(1, d * s.recurrent, s.recurrent).data_ptr();
    layer.w_hr[d] = data(w.w_hr);
  }
  call.report(run(layer, context.blas(), context.stream()));
  if (call.projected && call.lengths.defined()) write_final_h(call, output, hn[0]);

  Tensors saved;
  if (save != Save::kNothing) {
    if (gates.defined()) gates = gates.view({s.directions, s.total, call.cell.saved, s.hidden});
    for (const at::Tensor& tensor : {gates, cells, full}) {
      if (tensor.defined()) saved.push_back(tensor);
    }
  }
  return {output.view(call.rows_shape(output.size(1))), hn, saved};
}

}  // namespace fastrnn::cuda
