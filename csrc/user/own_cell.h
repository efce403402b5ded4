// What the libraries of a user's cell say of it.
#pragma once

#include "../cells/cell_info.h"

namespace fastrnn {

inline CellInfo own_info() {
  CellInfo info = describe<OwnCell>(FASTRNN_OWN_NAME);
  // Graphs are made with the states saved wherever there are some (fastrnn/_backends/graph.py).
  info.saves_carried = info.states > 1;
  return info;
}

}  // namespace fastrnn
