#include "cuda_tier.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <sstream>

namespace fastrnn::cuda {

namespace {

std::string wanted = "step";
TeamWish wished;

}  // namespace

void override_tier(const std::string& tier, const TeamWish& wish) {
  bool known = tier == "auto";
  for (const Tier each : {Tier::kStep, Tier::kCta, Tier::kCluster, Tier::kGrid})
    known = known || tier == tier_name(each);
  TORCH_CHECK(known, "override_tier: tier must be step, auto, cta, cluster or grid, got ", tier);
  wanted = tier;
  wished = wish;
}

namespace {

std::string describe(const Candidate& candidate) {
  const Team& team = candidate.team;
  std::ostringstream text;
  text << tier_name(team.tier) << " (" << candidate.regime << "; " << team.teams << " x "
       << team.members << " blocks a direction, " << team.units << " units each, "
       << team.tiles * team.rows << " rows)";
  return text.str();
}

// The candidate in force, or null; `against` gets the reason for the last that was passed over.
const Candidate* choose(const std::vector<Candidate>& candidates, const PlanQuery& query,
                        cudaError_t& against) {
  if (wanted == "step") return nullptr;
  for (const Candidate& candidate : candidates) {
    if (wanted != "auto" && wanted != tier_name(candidate.team.tier)) continue;
    const Shape shape{query.batch, 0, query.hidden, query.recurrent, query.directions};
    against = room_for(query.cell, query.dtype, candidate.team, shape, query.backward);
    if (against == cudaSuccess) return &candidate;
  }
  return nullptr;
}

}  // namespace

Team team_for(const Call& call, bool backward, const Context& context) {
  const Team step{Tier::kStep, false, 0, 0, 0, 0, 0};
  if (wanted == "step" || call.projected || call.dtype == Dtype::kFloat64) return step;
  const Device device = context.device();
  const Shape& s = call.shape;
  const PlanQuery query{call.number, call.dtype,  call.tf32,    backward,         s.batch,
                        s.hidden,    s.recurrent, s.directions, device.capability};
  const std::vector<Candidate> candidates = resident_candidates(query, device, wished);
  cudaError_t against = cudaSuccess;
  if (const Candidate* chosen = choose(candidates, query, against)) return chosen->team;
  TORCH_CHECK(wanted == "auto", call.function, ": tier ", wanted, " cannot serve ", call.cell.mode,
              backward ? " backward" : " forward", " with H = ", s.hidden, ", B = ", s.batch,
              " on this device",
              against == cudaSuccess ? "" : std::string(": ") + Context::error_text(against));
  return step;
}

std::string describe_plan(const at::Tensor& like, int cell, int64_t batch, int64_t hidden,
                          int64_t recurrent, int64_t directions) {
  const char* function = "fastrnn.cuda.describe_plan";
  cell_info(cell);  // raises for a number that is none
  const Dtype dtype = dtype_of(function, like);
  const Context context(like, dtype, uses_tf32(dtype));
  const Device device = context.device();
  std::ostringstream text;
  for (const bool backward : {false, true}) {
    const PlanQuery query{cell,   dtype,     uses_tf32(dtype), backward,         batch,
                          hidden, recurrent, directions,       device.capability};
    const std::vector<Candidate> candidates = resident_candidates(query, device, wished);
    cudaError_t against = cudaSuccess;
    const Candidate* chosen = choose(candidates, query, against);
    const StepKernel step = plan(query);
    text << (backward ? "\nbackward: " : "forward: ");
    if (chosen) {
      text << "one launch, " << describe(*chosen);
    } else {
      text << "a launch a step, "
           << (!step.fused         ? "a library product and the cell update"
               : step.tensor_cores ? "fused with tensor cores"
                                   : "fused");
    }
    for (const Candidate& candidate : candidates) {
      if (&candidate != chosen) text << "; possible: " << describe(candidate);
    }
  }
  return text.str();
}

namespace {

// As Sequence::weights has them.
at::Tensor resident_weights(const Call& call, const at::Tensor& w_hh, bool backward) {
  const int64_t G = call.cell.gates, H = call.H;
  const bool aligned = H == padded(H) && reinterpret_cast<uintptr_t>(w_hh.data_ptr()) % 16 == 0;
  if (aligned && !backward) return w_hh;
  const at::Tensor gates = w_hh.view({G, H, H});
  at::Tensor made = backward ? at::zeros({H, G, padded(H)}, call.options)
                             : at::zeros({G, H, padded(H)}, call.options);
  made.narrow(2, 0, H).copy_(backward ? gates.permute({2, 0, 1}) : gates);
  return made;
}

}  // namespace

ResidentMemory::ResidentMemory(const Call& call, const Team& team, bool backward,
                               cudaStream_t stream) {
  resident.team = team;
  if (team.tier == Tier::kStep) return;
  for (int64_t d = 0; d < call.D; ++d) {
    weights.push_back(resident_weights(call, call.weights[d].w_hh, backward));
    resident.weights[d] = weights.back().data_ptr();
  }
  const auto bytes = [&](int64_t count) {
    return at::empty({count}, call.options.dtype(at::kByte));
  };
  exchange = bytes(exchange_bytes(call.dtype, team, call.D, backward));
  arrivals = bytes(arrival_bytes(team, call.D));
  resident.exchange = exchange.data_ptr();
  resident.arrivals = static_cast<unsigned*>(arrivals.data_ptr());
  if (!call.packed) return;
  offsets = at::empty({call.T + 1}, call.options.dtype(at::kLong));
  resident.offsets = offsets.mutable_data_ptr<int64_t>();
  const cudaError_t error =
      write_offsets(offsets.mutable_data_ptr<int64_t>(), call.offsets.data(), call.T + 1, stream);
  TORCH_CHECK(error == cudaSuccess, call.function, ": ", Context::error_text(error),
              " in the launch that writes batch_sizes");
}

}  // namespace fastrnn::cuda
