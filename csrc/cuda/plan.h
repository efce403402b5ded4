// Which kernel serves a layer: a pure function of numbers, tested on any machine.
#pragma once

#include <cstdint>

#include "launch.h"

namespace fastrnn::cuda {

struct PlanQuery {
  int cell;  // position in cells.def, or a user's cell
  Dtype dtype;
  bool tf32;  // fp32 products may be rounded to tf32
  bool backward;
  int64_t batch, hidden, recurrent, directions;
  int capability;             // compute capability, 10 * major + minor
  bool masked = false;        // h is multiplied with an operand mask before the product
  bool zoned = false;         // with zoneout
  int64_t steps = INT64_MAX;  // of the sequence
};

StepKernel plan(const PlanQuery& query);

}  // namespace fastrnn::cuda
