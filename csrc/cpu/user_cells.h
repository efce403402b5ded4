// What the library of a user's cell and the extension give each other (csrc/user/library.cpp).
#pragma once

#include "../cells/user_cells.h"
#include "parallel.h"
#include "params.h"

namespace fastrnn::cpu {

// A library cannot link the extension, whose threads it uses: those of its own would be a second
// team.
struct Team {
  bool (*run)(int threads, void (*body)(void* context, int thread), void* context);
  void (*wait)(const Barrier& barrier);
};

struct UserCell {
  CellInfo info;
  Kernels others, bfloat16;  // for the cell at position 0
};

constexpr size_t kLayout = layout_of<ForwardParams, BackwardParams, CellInfo, Kernels, Graph>();

// A library's one symbol, fastrnn_user_cell. Returns false where `layout` is not its own.
using OpenUserCell = bool (*)(size_t layout, const Team& team, UserCell* cell);

}  // namespace fastrnn::cpu
