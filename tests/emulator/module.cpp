// The CUDA backend as a Python module for CPU tensors: the bindings of fastrnn._C.cuda themselves.
#include <pybind11/pybind11.h>

void bind_cuda(pybind11::module_& cuda);

PYBIND11_MODULE(fastrnn_emulated, m) { bind_cuda(m); }
