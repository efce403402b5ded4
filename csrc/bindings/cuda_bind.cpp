#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "../cuda/plan.h"
#include "../cuda/user_cells.h"
#include "cuda_layer.h"
#include "cuda_tier.h"

namespace py = pybind11;

namespace {

using namespace fastrnn;
using namespace fastrnn::cuda;

std::tuple<int, int64_t, const char*> as_tuple(const Wavefront& wavefront) {
  return {wavefront.lanes, wavefront.chunks, wavefront.why_not};
}

py::dict as_dict(const StepKernel& kernel) {
  return py::dict(py::arg("fused") = kernel.fused, py::arg("tensor_cores") = kernel.tensor_cores,
                  py::arg("rows") = kernel.rows);
}

py::dict as_dict(const Candidate& candidate) {
  const Team& team = candidate.team;
  return py::dict(py::arg("regime") = candidate.regime, py::arg("ahead") = candidate.ahead,
                  py::arg("tier") = tier_name(team.tier),
                  py::arg("tensor_cores") = team.tensor_cores, py::arg("rows") = team.rows,
                  py::arg("members") = team.members, py::arg("units") = team.units,
                  py::arg("teams") = team.teams, py::arg("tiles") = team.tiles);
}

py::dict as_dict(const PassPlan& plan) {
  py::list resident;
  for (const Candidate& candidate : plan.resident) resident.append(as_dict(candidate));
  return py::dict(py::arg("step") = as_dict(plan.step), py::arg("resident") = resident,
                  py::arg("chosen") = plan.chosen);
}

}  // namespace

// Fills the submodule `cuda`: the layer call, and the plan that it follows.
void bind_cuda(py::module_& cuda) {
  using Numbers = std::vector<int64_t>;
  using Scalars = std::vector<double>;
  using Rows = std::vector<std::tuple<double, double, double, bool>>;
  cuda.def(
      "layer_forward",
      [](const at::Tensor& x, const OptionalTensors& given, const Tensors& hx,
         const OptionalTensors& weights, const Numbers& spec,
         const Scalars& scalars) { return layer_forward({x, given, hx, weights}, spec, scalars); },
      py::arg("x"), py::arg("given"), py::arg("hx"), py::arg("weights"), py::arg("spec"),
      py::arg("scalars"), py::call_guard<py::gil_scoped_release>());
  cuda.def(
      "layer_backward",
      [](const OptionalTensors& grads, const at::Tensor& x, const OptionalTensors& given,
         const Tensors& hx, const OptionalTensors& weights, const Tensors& results,
         const Numbers& spec, const Scalars& scalars, std::array<bool, 3> needs) {
        return layer_backward(grads, {x, given, hx, weights}, results, spec, scalars, needs);
      },
      py::arg("grads"), py::arg("x"), py::arg("given"), py::arg("hx"), py::arg("weights"),
      py::arg("results"), py::arg("spec"), py::arg("scalars"), py::arg("needs"),
      py::call_guard<py::gil_scoped_release>());
  cuda.def(
      "add_cell",
      [](int64_t number, size_t address) {
        UserCell cell{};
        TORCH_CHECK(reinterpret_cast<OpenUserCell>(address)(kLayout, &cell), kOtherSources);
        add_user_cell(number, cell);
      },
      py::arg("number"), py::arg("address"));
  cuda.def(
      "override_plan",
      [](bool fused, bool tensor_cores, int rows) {
        override_plan(StepKernel{fused, tensor_cores, rows});
      },
      py::arg("fused"), py::arg("tensor_cores") = false, py::arg("rows") = 0);
  cuda.def(
      "override_tier",
      [](const std::string& tier, int rows, int units) { override_tier(tier, {rows, units}); },
      py::arg("tier"), py::arg("rows") = 0, py::arg("units") = 0);
  cuda.attr("measured_capability") = kMeasuredCapability;
  cuda.def(
      "keep_tiers",
      [](int device, const std::vector<std::tuple<int, at::Tensor, bool, bool, Rows>>& kinds) {
        TierRows kept;
        for (const auto& [cell, like, tf32, training, rows] : kinds) {
          std::vector<TierRow>& made =
              kept[{device, cell, dtype_of("fastrnn.cuda.keep_tiers", like), tf32, training}];
          for (const auto& [steps, batch, hidden, ahead] : rows)
            made.push_back({steps, batch, hidden, ahead});
        }
        keep_tiers(device, kept);
      },
      py::arg("device"), py::arg("kinds"));
  cuda.def("override_wavefront", &override_wavefront, py::arg("chunks"));
  cuda.def("follow_plan", [] {
    override_plan(std::nullopt);
    override_tier("step", {});
    override_wavefront(std::nullopt);
  });
  cuda.def(
      "plan_stack",
      [](const at::Tensor& like, int cell, int64_t batch, int64_t hidden, int64_t recurrent,
         int64_t directions, int64_t layers, int64_t steps, bool grad, bool masked, bool zoned) {
        const StackPlan plan = plan_stack(
            like,
            {{cell, batch, hidden, recurrent, directions, steps, masked, zoned}, layers, grad});
        return py::dict(py::arg("forward") = as_dict(plan.forward),
                        py::arg("backward") = as_dict(plan.backward),
                        py::arg("layers") = as_tuple(plan.layers));
      },
      py::arg("like"), py::arg("cell"), py::arg("batch"), py::arg("hidden"), py::arg("recurrent"),
      py::arg("directions"), py::arg("layers") = 1, py::arg("steps") = 1, py::arg("grad") = true,
      py::arg("masked") = false, py::arg("zoned") = false);
  cuda.def(
      "wavefront",
      [](const at::Tensor& like, int cell, int64_t batch, int64_t hidden, int64_t recurrent,
         int64_t directions, int64_t layers, int64_t steps, bool grad, bool masked, bool zoned) {
        return as_tuple(wavefront_for(
            like,
            {{cell, batch, hidden, recurrent, directions, steps, masked, zoned}, layers, grad}));
      },
      py::arg("like"), py::arg("cell"), py::arg("batch"), py::arg("hidden"), py::arg("recurrent"),
      py::arg("directions"), py::arg("layers"), py::arg("steps"), py::arg("grad"),
      py::arg("masked") = false, py::arg("zoned") = false);
  cuda.def(
      "plan",
      [](int cell, int dtype, bool tf32, bool backward, int64_t batch, int64_t hidden,
         int64_t recurrent, int64_t directions, int capability, bool masked) {
        cell_info(cell);
        const PlannedLayer layer{cell, batch, hidden, recurrent, directions, INT64_MAX, masked};
        return as_dict(plan({layer, static_cast<Dtype>(dtype), tf32, backward, capability}));
      },
      py::arg("cell"), py::arg("dtype"), py::arg("tf32"), py::arg("backward"), py::arg("batch"),
      py::arg("hidden"), py::arg("recurrent"), py::arg("directions"), py::arg("capability"),
      py::arg("masked") = false);
  cuda.def(
      "plan_tiers",
      [](int cell, int dtype, bool tf32, bool backward, int64_t batch, int64_t hidden,
         int64_t recurrent, int64_t directions, int capability, int sms, int shared_per_block,
         int max_cluster) {
        const CellInfo& info = cell_info(cell);
        py::list found;
        for (const Candidate& candidate :
             resident_candidates({{cell, batch, hidden, recurrent, directions},
                                  static_cast<Dtype>(dtype),
                                  tf32,
                                  backward,
                                  capability},
                                 {capability, sms, shared_per_block, max_cluster})) {
          found.append(as_dict(candidate));
          found[found.size() - 1]["shared_bytes"] =
              shared_bytes({info.gates, info.states, info.params}, static_cast<Dtype>(dtype),
                           candidate.team, hidden, backward);
        }
        return found;
      },
      py::arg("cell"), py::arg("dtype"), py::arg("tf32"), py::arg("backward"), py::arg("batch"),
      py::arg("hidden"), py::arg("recurrent"), py::arg("directions"), py::arg("capability"),
      py::arg("sms"), py::arg("shared_per_block"), py::arg("max_cluster"));
  cuda.def(
      "plan_wavefront",
      [](const std::vector<std::tuple<std::string, int, int>>& passes, int sms, int64_t directions,
         int64_t layers, int64_t steps, bool in_graph, std::optional<int64_t> chunks) {
        std::vector<Team> teams;
        for (const auto& [tier, members, count] : passes) {
          Team team{Tier::kStep, false, 0, members, 0, count, 1};
          for (const Tier each : {Tier::kCta, Tier::kCluster, Tier::kGrid})
            if (tier == tier_name(each)) team.tier = each;
          teams.push_back(team);
        }
        return as_tuple(
            plan_wavefront(teams, {0, sms, 0, 0}, directions, layers, steps, in_graph, chunks));
      },
      py::arg("passes"), py::arg("sms"), py::arg("directions"), py::arg("layers"), py::arg("steps"),
      py::arg("in_graph") = false, py::arg("chunks") = py::none());
}
