// fastrnn._C.cpu: frozen stacks, called with tensors or with the objects that a layer is given.
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "frozen.h"
#include "objects.h"

namespace fastrnn {
namespace {

namespace py = pybind11;

// Whether these are the states of a cell that has `count`: one tensor, or a tuple of several.
bool are_states(const py::object& hx, size_t count) {
  if (count == 1) return are_plain(py::make_tuple(hx), false);
  if (!PyTuple_CheckExact(hx.ptr())) return false;
  const auto states = py::reinterpret_borrow<py::tuple>(hx);
  return states.size() == count && are_plain(states, false);
}

// Calls f(x, states) for tensors of which nothing is to be recorded; states are none where hx is
// None. Returns None for a call of another kind or with an error in it: the longer way through
// Python computes or reports it, and takes as long as a small layer.
template <class F>
py::object call_plain(const py::object& x, const py::object& hx, size_t count, const F& f) {
  if (!are_plain(py::make_tuple(x), false)) return py::none();
  if (!hx.is_none() && !are_states(hx, count)) return py::none();
  const at::Tensor input = THPVariable_Unpack(x.ptr());
  std::vector<at::Tensor> states;
  if (!hx.is_none()) states = unpack(count == 1 ? py::make_tuple(hx) : py::tuple(hx));
  if (is_observed({input}) || is_observed(states)) return py::none();
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
      std::tie(output, states) = frozen_forward(packed, input, given, {}, {}, batch_first);
    }
    if (count == 1) return py::object(py::make_tuple(output, states[0]));
    return py::object(py::make_tuple(output, py::tuple(py::cast(states))));
  });
}

// frozen_advance of the states in `hx`.
py::object step_frozen(const at::Tensor& packed, size_t count, bool batch_first,
                       const py::object& x, const py::object& hx, const py::object& out) {
  if (hx.is_none() || !are_plain(py::make_tuple(out), true)) return py::none();
  return call_plain(x, hx, count, [&](const at::Tensor& input, std::vector<at::Tensor>& states) {
    std::optional<at::Tensor> to;
    if (!out.is_none()) to = THPVariable_Unpack(out.ptr());
    const auto advance = [&] {
      const py::gil_scoped_release no_gil;
      return frozen_advance(packed, input, states, to, batch_first);
    };
    return py::object(py::cast(advance()));
  });
}

}  // namespace
}  // namespace fastrnn

void bind_frozen(pybind11::module_& m) {
  using NoGil = pybind11::call_guard<pybind11::gil_scoped_release>;
  using pybind11::arg;
  m.def("pack_frozen", &fastrnn::pack_frozen, NoGil(), arg("cell"), arg("type"), arg("sizes"),
        arg("weights"),
        "The weights of a stack in packed form; type 0: float32, 1: bfloat16, 2: int8.");
  m.def("frozen_forward", &fastrnn::frozen_forward, NoGil(), arg("packed"), arg("x"), arg("hx"),
        arg("lengths"), arg("batch_sizes"), arg("batch_first"),
        "A frozen stack over whole sequences: the output and the final states.");
  m.def("frozen_advance", &fastrnn::frozen_advance, NoGil(), arg("packed"), arg("x"), arg("states"),
        arg("out"), arg("batch_first"), "The next steps of a frozen stack, states in place.");
  m.def("call_frozen", &fastrnn::call_frozen, arg("packed"), arg("count"), arg("batch_first"),
        arg("x"), arg("hx"),
        "frozen_forward as a layer is called, or None where it takes the longer way.");
  m.def("step_frozen", &fastrnn::step_frozen, arg("packed"), arg("count"), arg("batch_first"),
        arg("x"), arg("hx"), arg("out"), "frozen_advance likewise.");
}
