// fastrnn._C.cpu: layer_forward and layer_backward on the CPU kernels, and the choice of their
// instruction set.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>

#include <tuple>

#include "../cpu/dispatch.h"
#include "../cpu/parallel.h"
#include "cpu_gradients.h"
#include "cpu_memory.h"
#include "layer_args.h"

namespace fastrnn {
namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;

cpu::Dtype storage_type(const LayerArgs& args) {
  TORCH_CHECK(args.x.device().is_cpu(), args.function, ": x must be on the CPU, got ",
              args.x.device());
  switch (args.x.scalar_type()) {
    case at::kDouble:
      return cpu::Dtype::kFloat64;
    case at::kFloat:
      return cpu::Dtype::kFloat32;
    case at::kBFloat16:
      return cpu::Dtype::kBfloat16;
    case at::kHalf:
      return cpu::Dtype::kFloat16;
    default:
      TORCH_CHECK(false, args.function,
                  ": dtype must be float64, float32, bfloat16 or float16, got ", args.x.dtype());
  }
}

cpu::LayerShape shape_of(const LayerRows& rows, int64_t cell) {
  const LayerArgs& args = rows.args;
  return {int(cell),
          storage_type(args),
          rows.T,
          rows.B,
          args.I,
          args.H,
          args.R,
          int(args.D),
          rows.offsets.data(),
          cpu::usable_threads(at::get_num_threads()),
          args.reverse,
          args.B,
          rows.order.empty() ? nullptr : rows.order.data(),
          rows.resets.defined() ? rows.resets.const_data_ptr<bool>() : nullptr};
}

const void* pointer(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}
void* mutable_pointer(const Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr() : nullptr;
}

template <class Params>
void set_weights(const LayerArgs& args, Params* p) {
  for (int64_t d = 0; d < args.D; ++d) {
    const DirectionTensors& w = args.weights[d];
    p->weights[d] = {pointer(w.w_ih), pointer(w.w_hh), pointer(w.b_ih), pointer(w.b_hh),
                     pointer(w.w_hr)};
  }
}

Tensor scratch(size_t bytes) { return empty_block({int64_t(bytes)}, at::TensorOptions(at::kByte)); }

at::TensorOptions accumulate_options(const LayerArgs& args) {
  return args.options.dtype(args.x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

// `saved` holds, in this order and where the cell has them: gates, c, h before the projection.
// Their shapes do not depend on the lengths: the rows that exist come first, and the rest is not
// written.
std::tuple<Tensor, Tensors, Tensors> layer_forward(int64_t cell, const Tensor& x,
                                                   const std::optional<Tensor>& batch_sizes,
                                                   const Tensors& hx, const Tensors& weights,
                                                   bool save, const std::optional<Tensor>& lengths,
                                                   const std::optional<Tensor>& resets,
                                                   bool reverse, bool with_cells) {
  const LayerArgs args("fastrnn._C.cpu.layer_forward", cell, dense(x), batch_sizes, hx, weights,
                       {lengths, resets, reverse});
  const bool has_c = args.cell.states > 1;
  TORCH_CHECK(has_c || !with_cells, args.function, ": cells needs an LSTM, got ", args.cell.mode);
  const LayerRows rows(args);
  const Tensor output = rows.empty(args.D * args.R);
  Tensors hn = rows.empty_states(args.hx);
  if (with_cells) hn.push_back(rows.empty(args.D * args.H));
  Tensor gates, cells, hidden;
  Tensors saved;
  if (save && args.cell.saved > 0) {
    saved.push_back(gates = empty_block({args.D, args.N, args.cell.saved, args.H}, args.options));
  }
  if (save && args.cell.saves_c) {
    saved.push_back(cells = empty_block({args.D, args.N, args.H}, accumulate_options(args)));
  }
  if (save && args.projected)
    saved.push_back(hidden = empty_block({args.D, args.N, args.H}, args.options));

  cpu::ForwardParams p{};
  p.shape = shape_of(rows, cell);
  set_weights(args, &p);
  p.x = pointer(args.x);
  p.h0 = pointer(args.hx[0]);
  p.c0 = has_c ? pointer(args.hx[1]) : nullptr;
  p.output = mutable_pointer(output);
  p.hn = mutable_pointer(hn[0]);
  p.cn = has_c ? mutable_pointer(hn[1]) : nullptr;
  p.gates = mutable_pointer(gates);
  p.cells = mutable_pointer(cells);
  p.cell_sequence = with_cells ? mutable_pointer(hn[2]) : nullptr;
  p.hidden = mutable_pointer(hidden);
  const cpu::Kernels& kernels = cpu::kernels(p.shape.dtype);
  const Tensor workspace = scratch(kernels.forward_workspace(p));
  p.workspace = mutable_pointer(workspace);
  kernels.forward(p);
  return {output, hn, saved};
}

using Gradients = std::tuple<std::optional<Tensor>, std::optional<Tensors>, std::optional<Tensors>>;

Gradients layer_backward(int64_t cell, const Tensor& grad_output, const Tensors& grad_hn,
                         const Tensor& x, const std::optional<Tensor>& batch_sizes,
                         const Tensors& hx, const Tensors& weights, const Tensor& output_given,
                         const Tensors& saved, const std::vector<bool>& needs,
                         const std::optional<Tensor>& lengths, const std::optional<Tensor>& resets,
                         bool reverse) {
  const LayerArgs args("fastrnn._C.cpu.layer_backward", cell, dense(x), batch_sizes, hx, weights,
                       {lengths, resets, reverse});
  TORCH_CHECK(needs.size() == 3, args.function, ": needs must hold 3 flags (x, hx, weights), got ",
              needs.size());
  const bool has_c = args.cell.states > 1;
  const Tensor output = args.checked(output_given, "output", args.rows_shape(args.D * args.R));
  const Tensor grad_out =
      args.checked(dense(grad_output), "grad_output", args.rows_shape(args.D * args.R));
  Tensors grad_final = grad_hn;
  Tensor grad_cells;
  if (has_c && grad_hn.size() == 3) {
    grad_cells = args.checked(grad_hn[2], "grad_hn[2]", args.rows_shape(args.D * args.H));
    grad_final.pop_back();
  }
  const Tensors grad_states = args.checked_states(grad_final, "grad_hn");
  const size_t expected = (args.cell.saved > 0) + args.cell.saves_c + args.projected;
  TORCH_CHECK(saved.size() == expected, args.function, ": saved must hold the ", expected,
              " tensors that layer_forward(save=True) returned, got ", saved.size());
  size_t next = 0;
  Tensor gates, cells;
  if (args.cell.saved > 0) {
    gates = args.checked(saved[next++], "saved gates", {args.D, args.N, args.cell.saved, args.H});
  }
  if (args.cell.saves_c) {
    cells = args.checked(saved[next++], "saved c", {args.D, args.N, args.H},
                         c10::typeMetaToScalarType(accumulate_options(args).dtype()));
  }

  const LayerRows rows(args);
  const int64_t copies = args.cell.shared_gate_grad ? 1 : 2;
  const int64_t gate_rows = args.cell.gates * args.H;
  LayerGradients g;
  g.gates = empty_block({args.D, rows.N, copies, gate_rows}, args.options);
  if (needs[1]) g.states = rows.empty_states(grad_states);
  if (needs[2] && args.biases)
    g.bias = at::empty({args.D, copies, gate_rows}, accumulate_options(args));
  if (args.projected) {
    g.h = empty_block({args.D, rows.N, args.R}, args.options);
    g.hidden = args.checked(saved[next], "saved h before the projection", {args.D, args.N, args.H})
                   .flatten()
                   .narrow(0, 0, args.D * rows.N * args.H)
                   .view({args.D, rows.N, args.H});
  }

  cpu::BackwardParams p{};
  p.shape = shape_of(rows, cell);
  set_weights(args, &p);
  p.grad_output = pointer(grad_out);
  p.grad_hn = pointer(grad_states[0]);
  p.grad_cn = has_c ? pointer(grad_states[1]) : nullptr;
  p.grad_cells = pointer(grad_cells);
  p.h0 = pointer(args.hx[0]);
  p.c0 = has_c ? pointer(args.hx[1]) : nullptr;
  p.output = pointer(output);
  p.gates = pointer(gates);
  p.cells = pointer(cells);
  p.grad_gates = mutable_pointer(g.gates);
  p.grad_bias = mutable_pointer(g.bias);
  p.grad_h0 = needs[1] ? mutable_pointer(g.states[0]) : nullptr;
  p.grad_c0 = needs[1] && has_c ? mutable_pointer(g.states[1]) : nullptr;
  p.grad_h = mutable_pointer(g.h);
  const cpu::Kernels& kernels = cpu::kernels(p.shape.dtype);
  const Tensor workspace = scratch(kernels.backward_workspace(p));
  p.workspace = mutable_pointer(workspace);
  kernels.backward(p);

  std::optional<Tensor> grad_x;
  if (needs[0]) grad_x = input_gradient(rows, g);
  std::optional<Tensors> grad_hx, grad_weights;
  if (needs[1]) grad_hx = g.states;
  if (needs[2]) grad_weights = weight_gradients(rows, g, output);
  return {grad_x, grad_hx, grad_weights};
}

void set_isa(const std::string& name) {
  std::string names;
  for (const std::string& supported : cpu::supported_isas()) names += " " + supported;
  TORCH_CHECK(cpu::set_isa(name), "fastrnn._C.cpu.set_isa: this machine supports", names, "; got ",
              name);
}

}  // namespace
}  // namespace fastrnn

void bind_cpu(pybind11::module_& m) {
  using NoGil = pybind11::call_guard<pybind11::gil_scoped_release>;
  const pybind11::none none;
  m.def("layer_forward", &fastrnn::layer_forward, NoGil(), pybind11::arg("cell"),
        pybind11::arg("x"), pybind11::arg("batch_sizes"), pybind11::arg("hx"),
        pybind11::arg("weights"), pybind11::arg("save"), pybind11::arg("lengths") = none,
        pybind11::arg("resets") = none, pybind11::arg("reverse") = false,
        pybind11::arg("cells") = false,
        "One layer over a whole sequence: (output, hn, saved). cells adds c of every step to hn.");
  m.def("layer_backward", &fastrnn::layer_backward, NoGil(), pybind11::arg("cell"),
        pybind11::arg("grad_output"), pybind11::arg("grad_hn"), pybind11::arg("x"),
        pybind11::arg("batch_sizes"), pybind11::arg("hx"), pybind11::arg("weights"),
        pybind11::arg("output"), pybind11::arg("saved"), pybind11::arg("needs"),
        pybind11::arg("lengths") = none, pybind11::arg("resets") = none,
        pybind11::arg("reverse") = false,
        "Gradients of layer_forward: (grad_x, grad_hx, grad_weights), None where not needed.");
  m.def("isa", &fastrnn::cpu::isa, "Name of the instruction set in use.");
  m.def("set_isa", &fastrnn::set_isa, pybind11::arg("name"),
        "Uses another supported instruction set from now on.");
  m.def("outruns_onednn", &fastrnn::cpu::outruns_onednn,
        "Whether LSTMs were measured level with oneDNN's or ahead on such a CPU.");
  m.def("cached_bytes", &fastrnn::cached_bytes, "Bytes of freed memory kept for later calls.");
  m.def("cache_limit", &fastrnn::cache_limit,
        "How many may be kept: FASTRNN_CPU_CACHE_MB, in bytes.");
  m.def("supported_isas", &fastrnn::cpu::supported_isas,
        "Instruction sets of this machine, lowest first.");
}
