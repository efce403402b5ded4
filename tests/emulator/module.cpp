// The CUDA backend as a Python module for CPU tensors: the bindings of fastrnn._C.cuda themselves,
// and what a test may ask of the device.
#include <dlfcn.h>
#include <pybind11/pybind11.h>

#include <array>
#include <map>

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

// From now on a launch is not run but handed to executor(where the kernel is in this library, grid,
// cluster, block, shared bytes, cooperative, bytes of the parameters); or, with none, run again.
void execute(const py::object& executor) {
  if (executor.is_none()) {
    emulator::executor = nullptr;
    return;
  }
  emulator::executor = [executor](const emulator::Launch& launch, const void* kernel,
                                  const emulator::Parameters& parameters) {
    Dl_info library;
    if (dladdr(kernel, &library) == 0) throw std::runtime_error("a kernel in no library");
    const auto place = static_cast<const char*>(kernel) - static_cast<char*>(library.dli_fbase);
    const py::gil_scoped_acquire gil;
    py::list bytes;
    for (const std::string& parameter : parameters) bytes.append(py::bytes(parameter));
    const dim3& grid = launch.grid;
    executor(place, py::make_tuple(grid.x, grid.y, grid.z), launch.cluster, launch.block.x,
             launch.shared_bytes, launch.cooperative, bytes);
  };
}

}  // namespace

PYBIND11_MODULE(fastrnn_emulated, m) {
  bind_cuda(m);
  m.def("record", &record, py::arg("recorder").none(true));
  m.def("execute", &execute, py::arg("executor").none(true));
  m.def("default_stream_refuses",
        [] { return cudaMemsetAsync(nullptr, 0, 0, nullptr) == cudaErrorStreamCaptureImplicit; });
  m.def(
      "set_device",
      [](int sms, int cluster_sms) {
        const emulator::Device first{};  // which is there before the first call
        static std::map<std::array<int, 2>, int> devices{
            {{first.sms, first.cluster_sms}, first.index}};
        const auto known =
            devices.emplace(std::array{sms, cluster_sms}, static_cast<int>(devices.size()));
        emulator::device = {.index = known.first->second, .sms = sms, .cluster_sms = cluster_sms};
      },
      py::arg("sms") = 132, py::arg("cluster_sms") = 128);
  m.def("last_launch", [] {
    const emulator::Launch& last = emulator::last;
    return py::dict(py::arg("blocks") = last.grid.x * last.grid.y,
                    py::arg("cluster") = last.cluster, py::arg("cooperative") = last.cooperative);
  });
}
