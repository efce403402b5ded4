// Cells that a user wrote, each compiled on the user's machine from these sources into a library of
// its own (csrc/user): what a library and the extension give each other, and the cells by number.
#pragma once

#include <map>
#include <mutex>

#include "../cells/cell_info.h"
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

// Where it differs, the two were compiled from different sources.
constexpr size_t kLayout = ((sizeof(ForwardParams) * 1021 + sizeof(BackwardParams)) * 1021 +
                            sizeof(CellInfo) + sizeof(Kernels)) *
                               1021 +
                           sizeof(Graph);

// A library's one symbol, fastrnn_user_cell. Returns false where `layout` is not its own.
using OpenUserCell = bool (*)(size_t layout, const Team& team, UserCell* cell);

// Lower numbers are positions in cells.def.
constexpr int64_t kFirstUserCell = int64_t(1) << 30;

struct UserCells {
  std::mutex mutex;
  std::map<int64_t, UserCell> by_number;  // what is in it never moves and never goes
};

inline UserCells& user_cells() {
  static UserCells cells;
  return cells;
}

inline void add_user_cell(int64_t number, const UserCell& cell) {
  const std::lock_guard lock(user_cells().mutex);
  user_cells().by_number.emplace(number, cell);
}

// Null where no such cell was added.
inline const UserCell* find_user_cell(int64_t number) {
  if (number < kFirstUserCell) return nullptr;
  const std::lock_guard lock(user_cells().mutex);
  const auto found = user_cells().by_number.find(number);
  return found == user_cells().by_number.end() ? nullptr : &found->second;
}

}  // namespace fastrnn::cpu
