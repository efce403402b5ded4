// fastrnn._C: one submodule per backend that was compiled.
#include <torch/csrc/utils/pybind.h>

void bind_cpu(pybind11::module_& m);
#ifdef FASTRNN_WITH_CUDA
void bind_cuda(pybind11::module_& m);
#endif

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Compiled kernels of fastrnn; private, call them through the package.";
  pybind11::module_ cpu = m.def_submodule("cpu");
  bind_cpu(cpu);
#ifdef FASTRNN_WITH_CUDA
  pybind11::module_ cuda = m.def_submodule("cuda");
  bind_cuda(cuda);
#endif
}
