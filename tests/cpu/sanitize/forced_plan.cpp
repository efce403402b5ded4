// plan.cpp, compiled as measured_plan(), with its choice overruled: the sizes that the driver can
// afford would never be worth a second thread, and every division of the work has to be tested.
#include "forced_plan.h"

#include "../../../csrc/cpu/plan.h"

Division forced{};
int forced_uses = 0;

namespace fastrnn::cpu {

Plan measured_plan(const LayerShape& shape, const StepWork& work, int threads);

Plan make_plan(const LayerShape& shape, const StepWork& work, int threads) {
  if (forced.teams == 0) return measured_plan(shape, work, threads);
  if (forced.threads() > threads || forced.teams > shape.D || forced.batch_slices > shape.B ||
      forced.unit_slices > work.most_slices) {
    return {1, 1, 1, 1};
  }
  ++forced_uses;
  return {forced.threads(), forced.teams, forced.batch_slices, forced.unit_slices};
}

}  // namespace fastrnn::cpu
