// fastrnn._C: the cells as data, the gate for tensors, and one submodule per backend that was
// compiled.
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "../cpu/user_cells.h"
#include "frozen.h"
#include "gate.h"

void bind_cpu(pybind11::module_& m);
#ifdef FASTRNN_WITH_CUDA
void bind_cuda(pybind11::module_& m);
#endif

namespace {

namespace py = pybind11;

// torch casts a weight once and keeps it until the outermost autocast block ends.
std::vector<at::Tensor> cast_once(const std::vector<at::Tensor>& tensors, at::ScalarType dtype,
                                  const std::string& device) {
  return at::autocast::cached_cast(dtype, at::TensorList(tensors), c10::Device(device).type());
}

// is_plain for objects from Python, of which none may be of a subclass that overrides functions.
// `objects` may have None in it where `optional`.
bool are_plain(const py::tuple& objects, bool optional) {
  for (const py::handle object : objects) {
    if (optional && object.is_none()) continue;
    if (!THPVariable_CheckTypeExact(Py_TYPE(object.ptr()))) return false;
    if (!fastrnn::is_plain(THPVariable_Unpack(object.ptr()))) return false;
  }
  return true;
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
                  py::arg("projects") = cell.can_project, py::arg("graph") = graph);
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
  TORCH_CHECK(number >= cpu::kFirstUserCell,
              "fastrnn: the number of an added cell must be at least ", cpu::kFirstUserCell,
              ", got ", number);
  TORCH_CHECK(
      reinterpret_cast<cpu::OpenUserCell>(address)(cpu::kLayout, team, &cell),
      "fastrnn: the headers beside this package are not those its extension was built from: "
      "rebuild it");
  cpu::add_user_cell(number, cell);
  return describe(cell.info);
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
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Compiled kernels of fastrnn; private, call them through the package.";
  m.def("are_plain", &are_plain, pybind11::arg("tensors"), pybind11::arg("optional") = false,
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
