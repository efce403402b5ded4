// The constants of the cells, looked up by position in cells.def at run time.
#pragma once

#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"

namespace fastrnn::cuda {

struct CellInfo {
  const char* mode;  // as torch's modules spell it
  int gates, states, saved;
  bool shared_gate_grad, direct_grad;
};

inline constexpr CellInfo kCells[] = {
#define FASTRNN_CELL(type, mode) \
  {mode, type::kGates, type::kStates, type::kSaved, type::kSharedGateGrad, type::kDirectGrad},
#include "../cells/cells.def"
#undef FASTRNN_CELL
};
inline constexpr int kCellCount = sizeof(kCells) / sizeof(kCells[0]);

}  // namespace fastrnn::cuda
