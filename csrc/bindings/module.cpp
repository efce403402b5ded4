// fastrnn._C: one submodule per backend that was compiled.
#include <ATen/autocast_mode.h>
#include <torch/csrc/utils/pybind.h>

#include "gate.h"

void bind_cpu(pybind11::module_& m);
#ifdef FASTRNN_WITH_CUDA
void bind_cuda(pybind11::module_& m);
#endif

namespace {

// torch casts a weight once and keeps it until the outermost autocast block ends.
std::vector<at::Tensor> cast_once(const std::vector<at::Tensor>& tensors, at::ScalarType dtype,
                                  const std::string& device) {
  return at::autocast::cached_cast(dtype, at::TensorList(tensors), c10::Device(device).type());
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Compiled kernels of fastrnn; private, call them through the package.";
  m.def("are_plain", &fastrnn::are_plain, pybind11::arg("tensors"),
        "Whether kernels may read these tensors; a tuple.");
  m.def("autocast", &cast_once, pybind11::arg("tensors"), pybind11::arg("dtype"),
        pybind11::arg("device"),
        "The tensors in dtype, those that torch's autocast keeps from there.");
  pybind11::module_ cpu = m.def_submodule("cpu");
  bind_cpu(cpu);
#ifdef FASTRNN_WITH_CUDA
  pybind11::module_ cuda = m.def_submodule("cuda");
  bind_cuda(cuda);
#endif
}
