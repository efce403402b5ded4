// The gate of gate.h for objects from Python; apart from it, for that one is also built without.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <vector>

namespace fastrnn {

// is_plain for objects from Python, of which none may be of a subclass that overrides functions.
// `objects` may have None in it where `optional`.
bool are_plain(const pybind11::tuple& objects, bool optional);

// Tensors from Python, which must be some.
std::vector<at::Tensor> unpack(const pybind11::tuple& objects);

// Whether torch has to record, cast or transform a call with these tensors.
bool is_observed(const std::vector<at::Tensor>& tensors);

}  // namespace fastrnn
