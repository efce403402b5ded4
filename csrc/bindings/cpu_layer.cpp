// fastrnn._C.cpu: layer_forward and layer_backward on the CPU kernels, and the choice of their
// instruction set.
#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/utils/pybind.h>

#include <tuple>

#include "../cpu/dispatch.h"
#include "../cpu/isa/frozen_levels.h"
#include "../cpu/parallel.h"
#include "../cpu/user_cells.h"
#include "cpu_gradients.h"
#include "cpu_memory.h"
#include "layer_args.h"
#include "objects.h"

namespace fastrnn {
namespace {

using at::Tensor;

cpu::LayerShape shape_of(const LayerRows& rows) {
  const LayerArgs& args = rows.args;
  return {args.spec.cell < kFirstUserCell ? args.spec.cell : 0,
          dtype_of(args.function, args.x),
          rows.T,
          rows.B,
          args.I,
          args.H,
          args.R,
          int(args.D),
          rows.offsets.data(),
          cpu::usable_threads(at::get_num_threads()),
          args.spec.forwards,
          args.B,
          rows.order.empty() ? nullptr : rows.order.data(),
          rows.resets.defined() ? rows.resets.const_data_ptr<bool>() : nullptr,
          args.operand_mask.defined() ? args.operand_mask.const_data_ptr() : nullptr};
}

const cpu::Kernels& kernels_for(const LayerArgs& args, Dtype dtype) {
  if (args.spec.cell < kFirstUserCell) return cpu::kernels(dtype, args.B);
  const cpu::UserCell* const own = added<cpu::UserCell>().find(args.spec.cell);
  TORCH_CHECK(own, args.function, ": ", args.cell.mode, " was added without CPU kernels");
  return dtype == Dtype::kBfloat16 && cpu::pairs_bfloat16(args.B) ? own->bfloat16 : own->others;
}

const void* pointer(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}
void* mutable_pointer(const Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr() : nullptr;
}

// What forward and backward are given alike.
template <class Params>
void set_inputs(const LayerRows& rows, Params* p) {
  const LayerArgs& args = rows.args;
  p->shape = shape_of(rows);
  for (int64_t d = 0; d < args.D; ++d) {
    p->weights[d] = {pointer(args.weight(d, kWih)), pointer(args.weight(d, kWhh)),
                     pointer(args.weight(d, kBih)), pointer(args.weight(d, kBhh)),
                     pointer(args.weight(d, kWhr)), {}};
    for (int k = 0; k < args.cell.params; ++k)
      p->weights[d].params[k] = pointer(args.weight(d, kFirstParam + k));
  }
  std::copy(std::begin(args.scalars), std::end(args.scalars), p->scalars);
  p->zoneout = args.zoneout();
  for (size_t k = 0; k < args.hx.size(); ++k) p->states.initial[k] = pointer(args.hx[k]);
}

// What is saved does not depend on the lengths in its shape: the rows that exist come first, and
// the rest is not written.
std::tuple<Tensor, Tensors, Tensors> layer_forward(const Tensor& x, const OptionalTensors& given,
                                                   const Tensors& hx,
                                                   const OptionalTensors& weights,
                                                   const std::vector<int64_t>& spec,
                                                   const std::vector<double>& scalars) {
  const LayerArgs args("fastrnn._C.cpu.layer_forward", {dense(x), given, hx, weights}, spec,
                       scalars);
  const LayerRows rows(args);
  const bool save = args.spec.save != Save::kNothing;
  const Tensor output = rows.empty(args.D * args.R);
  Tensors states = rows.empty_states(args.hx);
  for (int64_t s = 1; args.spec.all_states && s < args.cell.states; ++s)
    states.push_back(rows.empty(args.D * args.H));
  Tensor gates, carried, given_states, statistics, hidden;
  Tensors saved;
  if (save && args.cell.saved > 0)
    saved.push_back(gates = empty_block({args.D, args.N, args.cell.saved, args.H}, args.options));
  if (save && args.cell.saves_carried) {
    saved.push_back(carried = empty_block({args.D, args.N, args.cell.states - 1, args.H},
                                          args.accumulate_options()));
  }
  if (save && args.zoned && args.cell.read_next > 0) {
    saved.push_back(given_states = empty_block({args.D, args.N, args.cell.read_next, args.H},
                                               args.accumulate_options()));
  }
  if (save && args.cell.statistics > 0) {
    saved.push_back(statistics = empty_block({args.D, args.N, args.cell.statistics},
                                             args.accumulate_options()));
  }
  if (save && args.projected)
    saved.push_back(hidden = empty_block({args.D, args.N, args.H}, args.options));

  cpu::ForwardParams p{};
  set_inputs(rows, &p);
  p.x = pointer(args.x);
  p.output = mutable_pointer(output);
  for (int64_t s = 0; s < args.cell.states; ++s) {
    p.states.last[s] = mutable_pointer(states[s]);
    if (s > 0 && args.spec.all_states)
      p.states.sequence[s] = mutable_pointer(states[args.cell.states + s - 1]);
  }
  p.states.carried = mutable_pointer(carried);
  p.gates = mutable_pointer(gates);
  p.given = mutable_pointer(given_states);
  p.statistics = mutable_pointer(statistics);
  p.hidden = mutable_pointer(hidden);
  const cpu::Kernels& kernels = kernels_for(args, p.shape.dtype);
  const Tensor workspace = scratch(kernels.forward_workspace(p));
  p.workspace = mutable_pointer(workspace);
  kernels.forward(p);
  return {output, states, saved};
}

using Gradients =
    std::tuple<std::optional<Tensor>, std::optional<Tensors>, std::optional<OptionalTensors>>;

Gradients layer_backward(OptionalTensors grads, const Tensor& x, const OptionalTensors& given,
                         const Tensors& hx, const OptionalTensors& weights, const Tensors& results,
                         const std::vector<int64_t>& spec, const std::vector<double>& scalars,
                         std::array<bool, 3> needs) {
  const LayerArgs args("fastrnn._C.cpu.layer_backward", {dense(x), given, hx, weights}, spec,
                       scalars);
  if (!grads.empty() && grads[0]) grads[0] = dense(*grads[0]);
  const LayerResults r(args, grads, results, false);
  const LayerRows rows(args);
  const int64_t copies = args.cell.shared_gate_grad ? 1 : 2, G = args.cell.gates;
  LayerGradients g;
  g.gates = empty_block({args.D, rows.N, copies, G * args.H}, args.options);
  if (needs[1]) g.states = rows.empty_states(r.grad_last);
  if (needs[2] && (args.biases || args.cell.params > 0)) {
    g.units = at::empty({args.D, (copies * G + args.cell.all_param_rows()) * args.H},
                        args.accumulate_options());
  }
  if (args.projected) {
    g.h = empty_block({args.D, rows.N, args.R}, args.options);
    g.hidden =
        r.hidden.flatten().narrow(0, 0, args.D * rows.N * args.H).view({args.D, rows.N, args.H});
  }

  cpu::BackwardParams p{};
  set_inputs(rows, &p);
  p.grad_output = pointer(r.grad_output);
  for (int64_t s = 0; s < args.cell.states; ++s) {
    p.states.grad_last[s] = pointer(r.grad_last[s]);
    p.states.grad_initial[s] = needs[1] ? mutable_pointer(g.states[s]) : nullptr;
    if (s > 0 && args.spec.all_states) p.states.grad_sequence[s] = pointer(r.grad_sequences[s - 1]);
  }
  p.states.carried = pointer(r.carried);
  p.output = pointer(r.output);
  p.gates = pointer(r.gates);
  p.given = pointer(r.given);
  p.statistics = pointer(r.statistics);
  p.grad_gates = mutable_pointer(g.gates);
  p.grad_units = mutable_pointer(g.units);
  p.grad_h = mutable_pointer(g.h);
  const cpu::Kernels& kernels = kernels_for(args, p.shape.dtype);
  const Tensor workspace = scratch(kernels.backward_workspace(p));
  p.workspace = mutable_pointer(workspace);
  kernels.backward(p);

  Gradients found;
  if (needs[0]) std::get<0>(found) = input_gradient(rows, g);
  if (needs[1]) std::get<1>(found) = g.states;
  if (needs[2]) std::get<2>(found) = weight_gradients(rows, g, r.output);
  return found;
}

// A whole stack without gradients: (output, *final states). `objects` are x, hx and flat weights.
// Returns nothing for a call of another kind or with an error in it: the longer way, layer by layer
// from Python, computes or reports it. That way takes longer than the kernels of a small call.
std::optional<Tensors> infer(const pybind11::tuple& objects, int64_t cell, int64_t layers,
                             int64_t directions) {
  const CellInfo& info = cell_info(cell);
  if (cell >= kCellCount || layers < 1 || directions < 1 || !are_plain(objects, false) ||
      objects.size() <= size_t(info.states))
    return std::nullopt;
  const Tensors tensors = unpack(objects);
  Tensor x = tensors[0];
  if (is_observed(tensors) || !x.is_cpu() || x.dim() != 3 || x.numel() == 0) return std::nullopt;

  const pybind11::gil_scoped_release no_gil;
  const auto weights = tensors.begin() + 1 + info.states;
  const int64_t rows = layers * directions, each = (tensors.end() - weights) / rows;
  const int64_t plain_weights = each - info.params, slots = kFirstParam + info.params;
  const bool biased = plain_weights == 3 + info.recurrent;
  if (!biased && plain_weights != 1 + info.recurrent) return std::nullopt;  // projected
  const OptionalTensors given(kGivens);
  const std::vector<int64_t> spec{LayerSpec::kVersion, cell, int(Save::kNothing), 1, 0, 0};
  std::vector<Tensors> finals(info.states);
  try {
    for (int64_t l = 0; l < layers; ++l) {
      Tensors hx;
      for (int k = 0; k < info.states; ++k)
        hx.push_back(layers == 1 ? tensors[1 + k]
                                 : tensors[1 + k].narrow(0, l * directions, directions));
      OptionalTensors group(directions * slots);
      for (int64_t d = 0; d < directions; ++d) {
        auto next = weights + (l * directions + d) * each;
        auto* const slot = &group[d * slots];
        slot[kWih] = *next++;
        if (info.recurrent) slot[kWhh] = *next++;
        if (biased) slot[kBih] = *next++, slot[kBhh] = *next++;
        for (int k = 0; k < info.params; ++k) slot[kFirstParam + k] = *next++;
      }
      auto [output, states, saved] = layer_forward(x, given, hx, group, spec, {});
      x = output;
      for (int k = 0; k < info.states; ++k) finals[k].push_back(states[k]);
    }
  } catch (const c10::Error&) {
    return std::nullopt;
  }
  Tensors found{x};
  for (const Tensors& states : finals) found.push_back(layers == 1 ? states[0] : at::cat(states));
  return found;
}

void set_isa(const std::string& name) {
  std::string names;
  for (const std::string& supported : cpu::supported_isas()) names += " " + supported;
  TORCH_CHECK(cpu::set_isa(name), "fastrnn._C.cpu.set_isa: this machine supports", names, "; got ",
              name);
}

void use_dot_products(std::optional<bool> always) {
  using cpu::DotProducts;
  cpu::use_dot_products(!always   ? DotProducts::kWhereFaster
                        : *always ? DotProducts::kAlways
                                  : DotProducts::kNever);
}

}  // namespace
}  // namespace fastrnn

void bind_cpu(pybind11::module_& m) {
  using NoGil = pybind11::call_guard<pybind11::gil_scoped_release>;
  using pybind11::arg;
  m.def("layer_forward", &fastrnn::layer_forward, NoGil(), arg("x"), arg("given"), arg("hx"),
        arg("weights"), arg("spec"), arg("scalars"),
        "One layer over a whole sequence, see csrc/common/layer_spec.h.");
  m.def("layer_backward", &fastrnn::layer_backward, NoGil(), arg("grads"), arg("x"), arg("given"),
        arg("hx"), arg("weights"), arg("results"), arg("spec"), arg("scalars"), arg("needs"),
        "Gradients of layer_forward, None where not needed.");
  m.def("infer", &fastrnn::infer, arg("tensors"), arg("cell"), arg("layers"), arg("directions"),
        "A stack without gradients: (output, *states), or None where it takes the longer way.");
  m.def("isa", &fastrnn::cpu::isa, "Name of the instruction set in use.");
  m.def("set_isa", &fastrnn::set_isa, pybind11::arg("name"),
        "Uses another supported instruction set from now on.");
  m.def("use_dot_products", &fastrnn::use_dot_products, arg("always"),
        "Wherever the CPU has such instructions, nowhere, or (None) where they are faster.");
  m.def("cached_bytes", &fastrnn::cached_bytes, "Bytes of freed memory kept for later calls.");
  m.def("cache_limit", &fastrnn::cache_limit,
        "How many may be kept: FASTRNN_CPU_CACHE_MB, in bytes.");
  m.def("supported_isas", &fastrnn::cpu::supported_isas,
        "Instruction sets of this machine, lowest first.");
}
