// What the library of a user's cell gives the extension (csrc/user/library.cu): step kernels, which
// serve every call.
#pragma once

#include "../cells/user_cells.h"
#include "launch.h"
#include "rebuild.h"

namespace fastrnn::cuda {

// The launchers of a cell in a storage type.
struct CellKernels {
  cudaError_t (*forward)(const StepKernel& kernel, const ForwardStep& step, cudaStream_t stream);
  cudaError_t (*backward)(const StepKernel& kernel, const BackwardStep& step, cudaStream_t stream);
  cudaError_t (*rebuild)(const Rebuild& rebuild, cudaStream_t stream);
};

struct UserCell {
  CellInfo info;
  CellKernels kernels[4];  // by Dtype
};

constexpr size_t kLayout =
    layout_of<ForwardStep, BackwardStep, Rebuild, StepKernel, UserCell, Graph>();

// A library's one symbol, fastrnn_user_kernels. Returns false where `layout` is not its own.
using OpenUserCell = bool (*)(size_t layout, UserCell* cell);

// Null for a cell that is no user's, or has none.
inline const CellKernels* user_kernels(int cell, Dtype dtype) {
  const UserCell* const own = added<UserCell>().find(cell);
  return own ? &own->kernels[static_cast<int>(dtype)] : nullptr;
}

}  // namespace fastrnn::cuda
