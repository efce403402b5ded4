#include "cuda_tier.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <mutex>
#include <shared_mutex>

#include "../cells/user_cells.h"

namespace fastrnn::cuda {

namespace {

constexpr Team kStepTeam{Tier::kStep, false, 0, 0, 0, 0, 0};

// What override_tier asked for; read by calls on any thread, hence in one word.
struct Wanted {
  int16_t tier;  // a Tier, kAuto or kMeasured
  int16_t rows;  // as TeamWish
  int32_t units;
};
constexpr int16_t kAuto = -1, kMeasured = -2;
static_assert(std::atomic<Wanted>::is_always_lock_free);
std::atomic<Wanted> wanted{Wanted{kMeasured, 0, 0}};
std::atomic<int64_t> wished_chunks{-1};  // as override_wavefront; -1: nothing

bool only_steps() { return wanted.load().tier == int16_t(Tier::kStep); }

TierRows kept;
std::shared_mutex kept_mutex;

double distance(const TierRow& row, const PlanQuery& q) {
  const auto apart = [](double a, int64_t b) {
    return std::log2(a / static_cast<double>(std::max<int64_t>(b, 1)));
  };
  return std::hypot(apart(row.steps, q.steps), apart(row.batch, q.batch),
                    apart(row.hidden, q.hidden));
}

// Whether "auto" was measured ahead of "step" for a call like this, in all rows that are nearest.
bool is_measured_ahead(const PlanQuery& q, int device, bool training) {
  const std::shared_lock lock(kept_mutex);
  const auto found = kept.find({device, q.cell, q.dtype, q.tf32, training});
  if (found == kept.end() || found->second.empty()) return q.capability == kMeasuredCapability;
  double least = INFINITY;
  for (const TierRow& row : found->second) least = std::min(least, distance(row, q));
  return std::ranges::all_of(found->second, [&](const TierRow& row) {
    return row.ahead || distance(row, q) > least + 1e-9;
  });
}

}  // namespace

void keep_tiers(int device, const TierRows& rows) {
  const std::unique_lock lock(kept_mutex);
  std::erase_if(kept, [&](const auto& entry) { return entry.first.device == device; });
  kept.insert(rows.begin(), rows.end());
}

void override_tier(const std::string& tier, const TeamWish& wish) {
  for (const Tier each : {Tier::kStep, Tier::kCta, Tier::kCluster, Tier::kGrid}) {
    if (tier != tier_name(each)) continue;
    wanted = {int16_t(each), int16_t(wish.rows), wish.units};
    return;
  }
  TORCH_CHECK(tier == "auto" || tier == "measured",
              "override_tier: tier must be measured, auto, step, cta, cluster or grid, got ", tier);
  wanted = {tier == "auto" ? kAuto : kMeasured, int16_t(wish.rows), wish.units};
}

namespace {

// What a pass over a layer runs on, with all that could have served it.
struct Choice {
  Wanted setting = wanted;
  std::vector<Candidate> candidates;
  cudaError_t against = cudaSuccess;  // why the last that was passed over has no room
  int chosen = -1;                    // position in `candidates`; -1: a launch a step

  Choice(const PlanQuery& query, const Device& device, int index, bool training)
      : candidates(resident_candidates(query, device, {setting.rows, setting.units})) {
    const bool free = setting.tier == kAuto || setting.tier == kMeasured;
    if (setting.tier == int16_t(Tier::kStep) ||
        (setting.tier == kMeasured && !is_measured_ahead(query, index, training)))
      return;
    for (size_t i = 0; i < candidates.size() && chosen < 0; ++i) {
      const Team& team = candidates[i].team;
      if (free ? !candidates[i].ahead : setting.tier != int16_t(team.tier)) continue;
      const Shape shape{query.batch, 0, query.hidden, query.recurrent, query.directions};
      against = room_for(query.cell, query.dtype, team, shape, query.backward);
      if (against == cudaSuccess) chosen = int(i);
    }
  }
  Team team() const { return chosen < 0 ? kStepTeam : candidates[chosen].team; }
};

}  // namespace

void override_wavefront(std::optional<int64_t> chunks) {
  TORCH_CHECK(!chunks || *chunks >= 0, "override_wavefront: chunks must not be negative, got ",
              *chunks);
  wished_chunks = chunks.value_or(-1);
}

Team team_for(const Call& call, bool backward, const Context& context) {
  if (only_steps() || call.projected || call.zoned || !call.cell.recurrent ||
      call.spec.cell >= kFirstUserCell || call.cell.statistics > 0 || call.dtype == Dtype::kFloat64)
    return kStepTeam;
  const Device device = context.device();
  const Choice choice(call.query(backward, device.capability), device, call.x.get_device(),
                      backward || call.spec.save != Save::kNothing);
  TORCH_CHECK(
      choice.chosen >= 0 || choice.setting.tier < 0 || choice.setting.tier == int16_t(Tier::kStep),
      call.function, ": tier ", tier_name(Tier(choice.setting.tier)), " cannot serve ",
      call.cell.mode, backward ? " backward" : " forward", " with H = ", call.H, ", B = ", call.B,
      " on this device",
      choice.against == cudaSuccess ? "" : std::string(": ") + Context::error_text(choice.against));
  return choice.team();
}

StackPlan plan_stack(const at::Tensor& like, const Stack& stack) {
  cell_info(stack.cell);  // raises for a number that is none
  const Dtype dtype = dtype_of("fastrnn.cuda.plan_stack", like);
  const bool tf32 = uses_tf32(dtype, stack.steps);
  const Context context(like, dtype, tf32);
  const Device device = context.device();
  std::vector<Team> teams;
  const auto pass = [&](bool backward) -> PassPlan {
    const PlanQuery query{stack, dtype, tf32, backward, device.capability};
    const Choice choice(query, device, like.get_device(), stack.grad);
    if (stack.grad || !backward) teams.push_back(choice.team());
    return {plan(query), choice.candidates, choice.chosen};
  };
  StackPlan made{pass(false), pass(true), {}};
  const int64_t chunks = wished_chunks;
  made.layers =
      plan_wavefront(teams, device, stack.directions, stack.layers, stack.steps,
                     context.is_captured(), chunks < 0 ? std::nullopt : std::optional(chunks));
  return made;
}

Wavefront wavefront_for(const at::Tensor& like, const Stack& stack) {
  if (only_steps()) return {1, 0, "no tier is asked for"};
  return plan_stack(like, stack).layers;
}

namespace {

// As Sequence::weights has them.
at::Tensor resident_weights(const Call& call, const at::Tensor& w_hh, bool backward) {
  const int64_t G = call.cell.gates, H = call.H;
  const bool aligned = H == padded(H) && reinterpret_cast<uintptr_t>(w_hh.data_ptr()) % 16 == 0;
  if (aligned && !backward) return w_hh;
  const at::Tensor gates = w_hh.view({G, H, H});
  at::Tensor made = call.empty({backward ? H : G, backward ? G : H, padded(H)});
  if (H < padded(H)) made.zero_();
  made.narrow(2, 0, H).copy_(backward ? gates.permute({2, 0, 1}) : gates);
  return made;
}

}  // namespace

ResidentMemory::ResidentMemory(const Call& call, const Team& team, bool backward,
                               cudaStream_t stream) {
  resident.team = team;
  if (team.tier == Tier::kStep) return;
  for (int64_t d = 0; d < call.D; ++d) {
    weights.push_back(resident_weights(call, call.weight(d, kWhh), backward));
    resident.weights[d] = weights.back().data_ptr();
  }
  if (team.tier == Tier::kGrid) {
    const auto bytes = [&](int64_t count) {
      return at::empty({count}, call.options.dtype(at::kByte));
    };
    exchange = bytes(exchange_bytes(call.dtype, team, call.D, backward));
    arrivals = bytes(arrival_bytes(team, call.D));
    resident.exchange = exchange.data_ptr();
    resident.arrivals = static_cast<unsigned*>(arrivals.data_ptr());
  }
  if (!call.packed) return;
  offsets = at::empty({call.T + 1}, call.options.dtype(at::kLong));
  resident.offsets = offsets.mutable_data_ptr<int64_t>();
  const cudaError_t error =
      write_offsets(offsets.mutable_data_ptr<int64_t>(), call.offsets.data(), call.T + 1, stream);
  TORCH_CHECK(error == cudaSuccess, call.function, ": ", Context::error_text(error),
              " in the launch that writes batch_sizes");
}

}  // namespace fastrnn::cuda
