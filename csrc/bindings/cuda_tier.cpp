#include "cuda_tier.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <sstream>

namespace fastrnn::cuda {

namespace {

constexpr Team kStepTeam{Tier::kStep, false, 0, 0, 0, 0, 0};
std::string wanted = "step";
TeamWish wished;
std::optional<int64_t> wished_chunks;

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

// What a pass over a layer runs on, with all that could have served it.
struct Choice {
  std::vector<Candidate> candidates;
  cudaError_t against = cudaSuccess;  // why the last that was passed over has no room
  const Candidate* chosen;            // null: a launch a step

  Choice(const PlanQuery& query, const Device& device)
      : candidates(resident_candidates(query, device, wished)),
        chosen(choose(candidates, query, against)) {}
  Choice(const Choice&) = delete;
  Team team() const { return chosen ? chosen->team : kStepTeam; }
};

// Device, dtype and setting of a question that comes before any call.
struct Asked {
  const Stack& stack;
  Dtype dtype;
  bool tf32;
  Context context;
  Device device;

  Asked(const char* function, const at::Tensor& like, const Stack& asked)
      : stack(asked),
        dtype(dtype_of(function, like)),
        tf32(uses_tf32(dtype, stack.steps)),
        context(like, dtype, tf32),
        device(context.device()) {
    cell_info(stack.cell);  // raises for a number that is none
  }
  PlanQuery query(bool backward) const {
    return {stack.cell,
            dtype,
            tf32,
            backward,
            stack.batch,
            stack.hidden,
            stack.recurrent,
            stack.directions,
            device.capability};
  }
  Wavefront wavefront() const {
    std::vector<Team> passes{Choice(query(false), device).team()};
    if (stack.grad) passes.push_back(Choice(query(true), device).team());
    return plan_wavefront(passes, device, stack.directions, stack.layers, stack.steps,
                          wished_chunks);
  }
};

}  // namespace

void override_wavefront(std::optional<int64_t> chunks) {
  TORCH_CHECK(!chunks || *chunks >= 0, "override_wavefront: chunks must not be negative, got ",
              *chunks);
  wished_chunks = chunks;
}

Team team_for(const Call& call, bool backward, const Context& context) {
  if (wanted == "step" || call.projected || call.dtype == Dtype::kFloat64) return kStepTeam;
  const Device device = context.device();
  const Shape& s = call.shape;
  const Choice choice({call.number, call.dtype, call.tf32, backward, s.batch, s.hidden, s.recurrent,
                       s.directions, device.capability},
                      device);
  TORCH_CHECK(
      choice.chosen || wanted == "auto", call.function, ": tier ", wanted, " cannot serve ",
      call.cell.mode, backward ? " backward" : " forward", " with H = ", s.hidden,
      ", B = ", s.batch, " on this device",
      choice.against == cudaSuccess ? "" : std::string(": ") + Context::error_text(choice.against));
  return choice.team();
}

Wavefront wavefront_for(const at::Tensor& like, const Stack& stack) {
  // Most calls are such, and none of them should pay for the question.
  if (wanted == "step") return {1, 0, "no tier is asked for"};
  return Asked("fastrnn.cuda.wavefront", like, stack).wavefront();
}

std::string describe_plan(const at::Tensor& like, const Stack& stack) {
  const Asked asked("fastrnn.cuda.describe_plan", like, stack);
  std::ostringstream text;
  for (const bool backward : {false, true}) {
    const PlanQuery query = asked.query(backward);
    const Choice choice(query, asked.device);
    const StepKernel step = plan(query);
    text << (backward ? "\nbackward: " : "forward: ");
    if (choice.chosen) {
      text << "one launch, " << describe(*choice.chosen);
    } else {
      text << "a launch a step, "
           << (!step.fused         ? "a library product and the cell update"
               : step.tensor_cores ? "fused with tensor cores"
                                   : "fused");
    }
    for (const Candidate& candidate : choice.candidates) {
      if (&candidate != choice.chosen) text << "; possible: " << describe(candidate);
    }
  }
  if (stack.layers == 1) return text.str();
  const Wavefront wavefront = asked.wavefront();
  text << "\nlayers: ";
  if (wavefront.chunks > 0) {
    text << wavefront.lanes << " at the same time, in " << wavefront.chunks << " chunks of time";
  } else {
    text << "one after another, because " << wavefront.why_not;
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
