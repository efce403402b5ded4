// Cells that a user wrote, by number. Each is compiled on the user's machine from these sources
// into libraries of its own (csrc/user), one of CPU kernels and, where it is asked for, one of CUDA
// kernels: cpu/user_cells.h and cuda/user_cells.h say what these give the extension.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>

#include "cell_info.h"

namespace fastrnn {

// Lower numbers are positions in cells.def.
constexpr int64_t kFirstUserCell = int64_t(1) << 30;

// Said of a library whose layout is not the extension's.
constexpr const char* kOtherSources =
    "fastrnn: the headers beside this package are not those its extension was built from: rebuild "
    "it";

// What was added under a number stays as it is, and where it is.
template <class Value>
class ByNumber {
 public:
  void add(int64_t number, const Value& value) {
    const std::lock_guard lock(mutex_);
    values_.emplace(number, value);
  }
  // Null where nothing was added.
  const Value* find(int64_t number) {
    if (number < kFirstUserCell) return nullptr;
    const std::lock_guard lock(mutex_);
    const auto found = values_.find(number);
    return found == values_.end() ? nullptr : &found->second;
  }

 private:
  std::mutex mutex_;
  std::map<int64_t, Value> values_;
};

// What was added of users' cells: CellInfo, and what the libraries give each backend.
template <class Value>
ByNumber<Value>& added() {
  static ByNumber<Value> values;
  return values;
}

// `cell` is what a library gives a backend.
template <class UserCell>
void add_user_cell(int64_t number, const UserCell& cell) {
  added<CellInfo>().add(number, cell.info);
  added<UserCell>().add(number, cell);
}

// Null for a number that is no cell's.
inline const CellInfo* find_info(int64_t cell) {
  return cell >= 0 && cell < kCellCount ? &kCells[cell] : added<CellInfo>().find(cell);
}

// Of structs that a library and the extension give each other. Where it differs, the two were
// compiled from different sources.
template <class... Structs>
constexpr size_t layout_of() {
  size_t all = 0;
  ((all = all * 1021 + sizeof(Structs)), ...);
  return all;
}

// For a number that is known to be a cell's.
inline const CellInfo& info_of(int64_t cell) { return *find_info(cell); }

}  // namespace fastrnn
