// The CUDA backend as a Python module for CPU tensors: the bindings of fastrnn._C.cuda themselves,
// and what a test may ask of the device.
#include <pybind11/pybind11.h>

#include "emulator.h"

namespace py = pybind11;

void bind_cuda(py::module_& cuda);

namespace {

// From now on work is not done but handed to recorder(what it is, a function that does it); or,
// with none, done again.
void record(const py::object& recorder) {
  if (recorder.is_none()) {
    emulator::recorder = nullptr;
    return;
  }
  emulator::recorder = [recorder](emulator::Work work) {
    const py::gil_scoped_acquire gil;
    recorder(work.what, py::cpp_function([run = work.run] { return run() == cudaSuccess; }));
  };
}

}  // namespace

PYBIND11_MODULE(fastrnn_emulated, m) {
  bind_cuda(m);
  m.def("record", &record, py::arg("recorder").none(true));
  m.def("default_stream_refuses",
        [] { return cudaMemsetAsync(nullptr, 0, 0, nullptr) == cudaErrorStreamCaptureImplicit; });
  m.def(
      "set_device",
      [](int sms, int shared_per_block, int cluster_sms) {
        emulator::device.sms = sms;
        emulator::device.shared_per_block = shared_per_block;
        emulator::device.cluster_sms = cluster_sms;
      },
      py::arg("sms") = 132, py::arg("shared_per_block") = 227 * 1024, py::arg("cluster_sms") = 128);
  m.def("last_launch", [] {
    const emulator::Launch& last = emulator::last;
    return py::dict(py::arg("blocks") = last.grid.x * last.grid.y,
                    py::arg("threads") = last.block.x, py::arg("cluster") = last.cluster,
                    py::arg("cooperative") = last.cooperative,
                    py::arg("shared_bytes") = last.shared_bytes);
  });
}
