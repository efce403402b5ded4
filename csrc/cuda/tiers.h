// Which resident kernels could serve a layer, best first: a pure function of numbers, like plan.h.
#pragma once

#include <vector>

#include "plan.h"
#include "resident.h"

namespace fastrnn::cuda {

struct Device {
  int capability;  // 10 * major + minor
  int sms;
  int shared_per_block;  // bytes that a block can get by asking
  int max_cluster;       // blocks; 0 without clusters
};

// What a caller may prescribe for an experiment; 0 leaves it to the plan.
struct TeamWish {
  int rows = 0, units = 0;
};

struct Candidate {
  const char* regime;  // its name in the table
  Team team;
};

// In the table's order. All fit into the device's shared memory, and into its SMs where they must
// run at the same time, by the numbers; whether the compiled kernel does, the launcher knows.
// Projected LSTMs and float64 have none.
std::vector<Candidate> resident_candidates(const PlanQuery& query, const Device& device,
                                           const TeamWish& wish = {});

}  // namespace fastrnn::cuda
