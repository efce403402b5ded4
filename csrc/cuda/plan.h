// Which kernel serves a layer: a pure function of numbers, tested on any machine.
#pragma once

#include <cstdint>

#include "launch.h"

namespace fastrnn::cuda {

// What a layer computes, whatever runs it.
struct PlannedLayer {
  int cell;  // position in cells.def, or a user's cell
  int64_t batch, hidden, recurrent, directions;
  int64_t steps = INT64_MAX;  // of the sequence
  bool masked = false;        // h is multiplied with an operand mask before the product
  bool zoned = false;         // with zoneout
};

// A pass over it.
struct PlanQuery : PlannedLayer {
  Dtype dtype;
  bool tf32;  // fp32 products may be rounded to tf32
  bool backward;
  int capability;  // compute capability, 10 * major + minor
};

StepKernel plan(const PlanQuery& query);

}  // namespace fastrnn::cuda
