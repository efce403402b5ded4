// fastrnn._C: the cells as data, the gate for tensors, frozen stacks, and one submodule per backend
// that was compiled.
#include <ATen/autocast_mode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "../cpu/user_cells.h"
#include "frozen.h"
#include "gate.h"
#include "objects.h"

void bind_cpu(pybind11::module_& m);
#ifdef FASTRNN_WITH_CUDA
void bind_cuda(pybind11::module_& m);
#endif

bool fastrnn::are_plain(const pybind11::tuple& objects, bool optional) {
  for (const pybind11::handle object : objects) {
    if (optional && object.is_none()) continue;
    if (!THPVariable_CheckTypeExact(Py_TYPE(object.ptr()))) return false;
    if (!is_plain(THPVariable_Unpack(object.ptr()))) return false;
  }
  return true;
}

std::vector<at::Tensor> fastrnn::unpack(const pybind11::tuple& objects) {
  std::vector<at::Tensor> tensors;
  tensors.reserve(objects.size());
  for (const pybind11::handle object : objects) tensors.push_back(THPVariable_Unpack(object.ptr()));
  return tensors;
}

bool fastrnn::is_observed(const std::vector<at::Tensor>& tensors) {
  if (at::GradMode::is_enabled()) {
    for (const at::Tensor& t : tensors) {
      if (t.requires_grad()) return true;
    }
  }
  using c10::DispatchKey;
  const auto is_on = [](DispatchKey key) { return c10::impl::tls_is_dispatch_key_included(key); };
  return at::autocast::is_autocast_enabled(at::kCPU) || is_on(DispatchKey::Tracer) ||
         is_on(DispatchKey::FuncTorchDynamicLayerFrontMode) ||
         c10::impl::TorchDispatchModeTLS::any_modes_set() ||
         torch::autograd::ForwardADLevel::try_get_by_idx(0);
}

namespace {

namespace py = pybind11;

// torch casts a weight once and keeps it until the outermost autocast block ends.
std::vector<at::Tensor> cast_once(const std::vector<at::Tensor>& tensors, at::ScalarType dtype,
                                  const std::string& device) {
  return at::autocast::cached_cast(dtype, at::TensorList(tensors), c10::Device(device).type());
}

// A forward as data: (operation, a, b, value) for every node, and the nodes that become the states.
py::dict describe(const fastrnn::Graph& graph, int states) {
  py::list nodes, next;
  for (int n = 0; n < graph.count; ++n) {
    const fastrnn::Node& node = graph.node[n];
    nodes.append(py::make_tuple(fastrnn::kOpNames[int(node.op)], node.a, node.b, node.value));
  }
  for (int s = 0; s < states; ++s) next.append(graph.next[s]);
  return py::dict(py::arg("nodes") = nodes, py::arg("next") = next);
}

py::dict describe(const fastrnn::CellInfo& cell) {
  py::list initial, params;
  for (int s = 0; s < cell.states; ++s) initial.append(cell.state[s].initial);
  for (int k = 0; k < cell.params; ++k) params.append(cell.param[k]);
  py::object graph = py::none();
  if (cell.graph) graph = describe(*cell.graph, cell.states);
  return py::dict(py::arg("mode") = cell.mode, py::arg("gates") = cell.gates,
                  py::arg("states") = cell.states, py::arg("saved") = cell.saved,
                  py::arg("initial") = py::tuple(initial), py::arg("params") = py::tuple(params),
                  py::arg("recurrent") = cell.recurrent, py::arg("read_next") = cell.read_next,
                  py::arg("projects") = cell.can_project, py::arg("statistics") = cell.statistics,
                  py::arg("graph") = graph);
}

py::list describe_cells() {
  py::list found;
  for (const fastrnn::CellInfo& cell : fastrnn::kCells) found.append(describe(cell));
  return found;
}

// `address` is that of fastrnn_user_cell in a library that stays loaded.
py::dict add_cell(int64_t number, size_t address) {
  namespace cpu = fastrnn::cpu;
  const cpu::Team team{&cpu::run_team, [](const cpu::Barrier& barrier) { barrier.wait(); }};
  cpu::UserCell cell{};
  TORCH_CHECK(number >= fastrnn::kFirstUserCell && number == int(number),
              "fastrnn: the number of an added cell must be an int of at least ",
              fastrnn::kFirstUserCell, ", got ", number);
  TORCH_CHECK(reinterpret_cast<cpu::OpenUserCell>(address)(cpu::kLayout, team, &cell),
              fastrnn::kOtherSources);
  fastrnn::add_user_cell(number, cell);
  return describe(cell.info);
}

// Whether these are the states of a cell that has `count`: one tensor, or a tuple of several.
bool are_states(const py::object& hx, size_t count) {
  if (count == 1) return fastrnn::are_plain(py::make_tuple(hx), false);
  if (!PyTuple_CheckExact(hx.ptr())) return false;
  const auto states = py::reinterpret_borrow<py::tuple>(hx);
  return states.size() == count && fastrnn::are_plain(states, false);
}

// Calls f(x, states) for tensors of which nothing is to be recorded; states are none where hx is
// None. Returns None for a call of another kind or with an error in it: the longer way through
// Python computes or reports it, and takes as long as a small layer.
template <class F>
py::object call_plain(const py::object& x, const py::object& hx, size_t count, const F& f) {
  if (!fastrnn::are_plain(py::make_tuple(x), false)) return py::none();
  if (!hx.is_none() && !are_states(hx, count)) return py::none();
  const at::Tensor input = THPVariable_Unpack(x.ptr());
  std::vector<at::Tensor> states;
  if (!hx.is_none()) states = fastrnn::unpack(count == 1 ? py::make_tuple(hx) : py::tuple(hx));
  if (fastrnn::is_observed({input}) || fastrnn::is_observed(states)) return py::none();
  try {
    return f(input, states);
  } catch (const c10::Error&) {
    return py::none();
  }
}

// frozen_forward of a whole input, its results as a layer returns them.
py::object call_frozen(const at::Tensor& packed, size_t count, bool batch_first,
                       const py::object& x, const py::object& hx) {
  return call_plain(x, hx, count, [&](const at::Tensor& input, std::vector<at::Tensor>& states) {
    at::Tensor output;
    std::optional<std::vector<at::Tensor>> given;
    if (!hx.is_none()) given = std::move(states);
    {
      const py::gil_scoped_release no_gil;
      std::tie(output, states) = fastrnn::frozen_forward(packed, input, given, {}, {}, batch_first);
    }
    if (count == 1) return py::object(py::make_tuple(output, states[0]));
    return py::object(py::make_tuple(output, py::tuple(py::cast(states))));
  });
}

// frozen_advance of the states in `hx`.
py::object step_frozen(const at::Tensor& packed, size_t count, bool batch_first,
                       const py::object& x, const py::object& hx, const py::object& out) {
  if (hx.is_none() || !fastrnn::are_plain(py::make_tuple(out), true)) return py::none();
  return call_plain(x, hx, count, [&](const at::Tensor& input, std::vector<at::Tensor>& states) {
    std::optional<at::Tensor> to;
    if (!out.is_none()) to = THPVariable_Unpack(out.ptr());
    const auto advance = [&] {
      const py::gil_scoped_release no_gil;
      return fastrnn::frozen_advance(packed, input, states, to, batch_first);
    };
    return py::object(py::cast(advance()));
  });
}

void bind_frozen(py::module_& m) {
  using NoGil = py::call_guard<py::gil_scoped_release>;
  using py::arg;
  m.def("pack_frozen", &fastrnn::pack_frozen, NoGil(), arg("cell"), arg("type"), arg("sizes"),
        arg("weights"),
        "The weights of a stack in packed form; type 0: float32, 1: bfloat16, 2: int8.");
  m.def("frozen_forward", &fastrnn::frozen_forward, NoGil(), arg("packed"), arg("x"), arg("hx"),
        arg("lengths"), arg("batch_sizes"), arg("batch_first"),
        "A frozen stack over whole sequences: the output and the final states.");
  m.def("frozen_advance", &fastrnn::frozen_advance, NoGil(), arg("packed"), arg("x"), arg("states"),
        arg("out"), arg("batch_first"), "The next steps of a frozen stack, states in place.");
  m.def("call_frozen", &call_frozen, arg("packed"), arg("count"), arg("batch_first"), arg("x"),
        arg("hx"), "frozen_forward as a layer is called, or None where it takes the longer way.");
  m.def("step_frozen", &step_frozen, arg("packed"), arg("count"), arg("batch_first"), arg("x"),
        arg("hx"), arg("out"), "frozen_advance likewise.");
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Compiled kernels of fastrnn; private, call them through the package.";
  m.def("are_plain", &fastrnn::are_plain, pybind11::arg("tensors"),
        pybind11::arg("optional") = false,
        "Whether kernels may read these tensors; a tuple, with None in it where optional.");
  m.def("autocast", &cast_once, pybind11::arg("tensors"), pybind11::arg("dtype"),
        pybind11::arg("device"),
        "The tensors in dtype, those that torch's autocast keeps from there.");
  m.def("cells", &describe_cells, "The cells of cells.def, in its order.");
  m.def("add_cell", &add_cell, pybind11::arg("number"), pybind11::arg("address"),
        "Adds the cell of a user's library under a number; returns what cells() says of one.");
  pybind11::module_ cpu = m.def_submodule("cpu");
  bind_cpu(cpu);
  bind_frozen(cpu);
#ifdef FASTRNN_WITH_CUDA
  pybind11::module_ cuda = m.def_submodule("cuda");
  bind_cuda(cuda);
#endif
}
