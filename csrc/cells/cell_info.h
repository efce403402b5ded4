// The constants of the cells, looked up at run time by a cell's position in cells.def.
#pragma once

// A user's library is compiled with a list of its own (csrc/user).
#ifndef FASTRNN_CELLS
#define FASTRNN_CELLS "../cells/cells.def"
#endif
#include FASTRNN_CELLS
#include "derive.h"

namespace fastrnn {

struct CellInfo {
  const char* mode;  // as torch's modules spell it
  int gates, states, params, scalars, saved;
  const State* state;        // [states]
  const char* const* param;  // [params] their names
  const Graph* graph;        // of a cell that is derived, else null
  bool recurrent;            // has W_hh
  bool shared_gate_grad, direct_grad;
  bool saves_carried;  // backward reads states besides h
  bool saved_reads_state;
  int read_next;     // F: states that backward reads after a step, h among them
  bool can_project;  // h may be projected: neither pass reads it unit by unit
  int statistics;    // numbers of a row that backward needs of its norms; 0: there are none

  constexpr bool norms_state() const { return statistics == 4; }  // c' too, not the products alone
  // Parameter k is a tensor of so many H.
  constexpr int param_rows(int k) const { return statistics > 0 && k < 2 ? gates : 1; }
  constexpr int all_param_rows() const {
    int rows = 0;
    for (int k = 0; k < params; ++k) rows += param_rows(k);
    return rows;
  }
};

template <class Cell>
constexpr CellInfo describe(const char* mode) {
  using Names = typename Cell::Names;
  constexpr unsigned kRead = Cell::kBackwardPrev | Cell::kBackwardNext;
  CellInfo info{mode,
                Cell::kGates,
                Cell::kStates,
                Cell::kParams,
                Cell::kScalars,
                kSavedWithNorms<Cell>,
                Names::kStates,
                nullptr,
                nullptr,
                Cell::kRecurrent,
                Cell::kSharedGateGrad,
                Cell::kDirectGrad,
                (kRead & ~kStateH) != 0,
                Cell::kSavedReadsState,
                place_among(Cell::kBackwardNext, kMostStates),
                Cell::kRecurrent && !Cell::kReadsH && (kRead & kStateH) == 0,
                Cell::kStatistics};
  if constexpr (Cell::kParams > 0) info.param = Names::kParams;
  if constexpr (requires { Cell::kGraph; }) info.graph = &Cell::kGraph;
  return info;
}

inline constexpr CellInfo kCells[] = {
#define FASTRNN_CELL_ENTRY(type, mode) describe<type>(mode),
#include FASTRNN_CELLS
#undef FASTRNN_CELL_ENTRY
};
inline constexpr int kCellCount = sizeof(kCells) / sizeof(kCells[0]);

}  // namespace fastrnn
