// The constants of the cells, looked up at run time by a cell's position in cells.def.
#pragma once

#include "gru.h"
#include "lstm.h"
#include "rnn.h"

namespace fastrnn {

struct CellInfo {
  const char* mode;  // as torch's modules spell it
  int gates, states, saved;
  bool shared_gate_grad, direct_grad, saves_c;
};

template <class Cell>
constexpr CellInfo describe(const char* mode) {
  return {mode,
          Cell::kGates,
          Cell::kStates,
          Cell::kSaved,
          Cell::kSharedGateGrad,
          Cell::kDirectGrad,
          ((Cell::kBackwardPrev | Cell::kBackwardNext) & kStateC) != 0};
}

inline constexpr CellInfo kCells[] = {
#define FASTRNN_CELL(type, mode) describe<type>(mode),
#include "cells.def"
#undef FASTRNN_CELL
};
inline constexpr int kCellCount = sizeof(kCells) / sizeof(kCells[0]);

}  // namespace fastrnn
