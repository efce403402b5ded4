// Which resident kernels could serve a layer, best first: a pure function of numbers, like plan.h.
#pragma once

#include <optional>
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

// Where resident kernels are chosen without a proof that measured them: an H200 and an H100 have
// measured the plan (benchmarks/results).
constexpr int kMeasuredCapability = 90;

struct Candidate {
  const char* regime;  // its name in the table
  Team team;
  bool ahead;  // of a launch a step, by the table
};

// In the table's order. All fit into the device's shared memory, and into its SMs where they must
// run at the same time, by the numbers; whether the compiled kernel does, the launcher knows.
// Projected LSTMs, float64, zoneout, cells without W_hh or with norms, and users' cells have none.
std::vector<Candidate> resident_candidates(const PlanQuery& query, const Device& device,
                                           const TeamWish& wish = {});

// How a stack of layers runs in chunks of time: a layer begins with a chunk once it has done the
// chunk before and the layer below has done this one, so that several layers are at work.
struct Wavefront {
  int lanes;            // layers that run at the same time
  int64_t chunks;       // 0: one layer after another
  const char* why_not;  // null where there are chunks
};

// `passes` has the resident teams of the passes that will run, forward alone or backward too; a
// pass without one has a team of tier kStep. `in_graph`: the launches are being captured. `wished`
// chunks instead of the reckoned number, if there is any; fewer than two are none.
Wavefront plan_wavefront(const std::vector<Team>& passes, const Device& device, int64_t directions,
                         int64_t layers, int64_t steps, bool in_graph,
                         std::optional<int64_t> wished = {});

}  // namespace fastrnn::cuda
