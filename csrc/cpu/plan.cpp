#include "plan.h"

#include <algorithm>

namespace fastrnn::cpu {
namespace {

// Rough figures of current cores, in cycles; only their proportions matter.
constexpr double kForkCycles = 12000;
// A barrier, and what each of its threads adds: one more line to cross, one more that may be late.
constexpr double kBarrierCycles = 500, kBarrierCyclesPerThread = 250;
// Weights near a core arrive while it multiplies; most of the time for farther ones comes on top.
constexpr double kNearBytesPerCycle = 28, kFarBytesPerCycle = 15;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

double step_cycles(const LayerShape& shape, const StepWork& work, int batch_slices,
                   int unit_slices) {
  // Finished rows of packed data leave the slices at the end of the batch idle, so only a whole
  // batch profits from the mean.
  const double mean_rows = double(shape.offsets[shape.T]) / double(std::max<int64_t>(shape.T, 1));
  const double rows = batch_slices == 1 ? mean_rows : double(ceil_div(shape.B, batch_slices));
  const int64_t width = block_vectors(work.unit_vectors, work.widest_block, unit_slices);
  const int64_t blocks = ceil_div(ceil_div(work.unit_vectors, width), unit_slices);
  const double part = std::min(1.0, double(blocks * width) / double(work.unit_vectors));
  const double bytes = part * work.weight_bytes;
  const double compute =
      part * std::max(rows, work.least_rows) * work.macs_per_row / work.macs_per_cycle;
  const double far = bytes <= kNearCache ? 0 : bytes / kFarBytesPerCycle;
  return std::max(compute, bytes / kNearBytesPerCycle) + far +
         (unit_slices > 1 ? kBarrierCycles + unit_slices * kBarrierCyclesPerThread : 0);
}

// As many as there are threads for and have equally many directions.
int direction_teams(int directions, int threads) {
  int teams = std::min(directions, threads);
  while (directions % teams != 0) --teams;
  return teams;
}

}  // namespace

int64_t block_vectors(int64_t unit_vectors, int64_t widest, int64_t slices) {
  if (slices <= ceil_div(unit_vectors, widest)) return widest;
  return std::max<int64_t>(1, unit_vectors / slices);
}

Plan make_plan(const LayerShape& shape, const StepWork& work, int threads) {
  const int teams = direction_teams(shape.D, threads);
  Plan best{1, 1, 1, 1};
  double best_cycles = double(shape.D) * double(shape.T) * step_cycles(shape, work, 1, 1);
  for (int team = 1; team <= threads / teams; ++team) {
    for (int batch_slices = 1; batch_slices <= team; ++batch_slices) {
      if (team * teams == 1 || team % batch_slices != 0 || batch_slices > shape.B) continue;
      const int unit_slices = team / batch_slices;
      if (unit_slices > work.most_slices) continue;
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
  const bool mine = plan.direction_teams == 1 || thread / team == direction % plan.direction_teams;
  return {mine, member / plan.unit_slices, member % plan.unit_slices};
}

}  // namespace fastrnn::cpu
