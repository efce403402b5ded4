#include "plan.h"

#include <algorithm>

namespace fastrnn::cpu {
namespace {

// Rough figures of current cores, in cycles; only their proportions matter.
constexpr double kForkCycles = 12000;
constexpr double kBarrierCycles = 1000;
// Weights near a core arrive while it multiplies; most of the time for farther ones comes on top.
constexpr double kNearBytesPerCycle = 28, kFarBytesPerCycle = 15;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

double step_cycles(const LayerShape& shape, const StepWork& work, int batch_slices,
                   int unit_slices) {
  // Finished rows of packed data leave the slices at the end of the batch idle, so only a whole
  // batch profits from the mean.
  const double mean_rows = double(shape.offsets[shape.T]) / double(std::max<int64_t>(shape.T, 1));
  const double rows = batch_slices == 1 ? mean_rows : double(ceil_div(shape.B, batch_slices));
  const double part = double(ceil_div(work.unit_blocks, unit_slices)) / double(work.unit_blocks);
  const double bytes = part * work.weight_bytes;
  const double compute =
      part * std::max(rows, work.least_rows) * work.macs_per_row / work.macs_per_cycle;
  const double far = bytes <= kNearCache ? 0 : bytes / kFarBytesPerCycle;
  return std::max(compute, bytes / kNearBytesPerCycle) + far +
         (unit_slices > 1 ? kBarrierCycles : 0);
}

}  // namespace

Plan make_plan(const LayerShape& shape, const StepWork& work, int threads) {
  const int teams = shape.D == 2 && threads >= 2 ? 2 : 1;
  Plan best{1, 1, 1, 1};
  double best_cycles = double(shape.D) * double(shape.T) * step_cycles(shape, work, 1, 1);
  for (int team = 1; team <= threads / teams; ++team) {
    for (int batch_slices = 1; batch_slices <= team; ++batch_slices) {
      if (team * teams == 1 || team % batch_slices != 0 || batch_slices > shape.B) continue;
      const int unit_slices = team / batch_slices;
      if (unit_slices > work.unit_blocks) continue;
      const double cycles = double(shape.D / teams) * double(shape.T) *
                                step_cycles(shape, work, batch_slices, unit_slices) +
                            kForkCycles;
      if (cycles < best_cycles) {
        best = {team * teams, teams, batch_slices, unit_slices};
        best_cycles = cycles;
      }
    }
  }
  return best;
}

Share share_of(const Plan& plan, int thread, int direction) {
  const int team = plan.batch_slices * plan.unit_slices;
  const int member = thread % team;
  const bool mine = plan.direction_teams == 1 || thread / team == direction;
  return {mine, member / plan.unit_slices, member % plan.unit_slices};
}

}  // namespace fastrnn::cpu
