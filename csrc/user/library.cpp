// What makes a library of a user's cell out of the kernels of cpu/isa, beside which it is compiled
// (fastrnn/_kernels/cell_library.py).
#include "../cpu/isa/levels.h"
#include "../cpu/user_cells.h"
#include "own_cell.h"

namespace fastrnn::cpu {
namespace {
Team extension;
}

bool run_team(int threads, void (*body)(void* context, int thread), void* context) {
  return extension.run(threads, body, context);
}

void Barrier::wait() const { extension.wait(*this); }

}  // namespace fastrnn::cpu

extern "C" __attribute__((visibility("default"))) bool fastrnn_user_cell(
    size_t layout, const fastrnn::cpu::Team& team, fastrnn::cpu::UserCell* cell) {
  if (layout != fastrnn::cpu::kLayout) return false;
  fastrnn::cpu::extension = team;
  cell->info = fastrnn::own_info();
  cell->others = fastrnn::cpu::FASTRNN_OTHERS();
  cell->bfloat16 = fastrnn::cpu::FASTRNN_BFLOAT16();
  return true;
}
