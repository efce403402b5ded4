#include "cuda_tier.h"

#include <ATen/ops/empty.h>

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

Team team_for(const Call& call, bool backward, const Context& context) {
  const Team step{Tier::kStep, false, 0, 0, 0, 0, 0};
  if (wanted == "step" || call.projected || call.dtype == Dtype::kFloat64) return step;
  const Device device = context.device();
  const Shape& s = call.shape;
  for (const Candidate& candidate :
       resident_candidates({call.number, call.dtype, call.tf32, backward, s.batch, s.hidden,
                            s.recurrent, s.directions, device.capability},
                           device, wished)) {
    const Team& team = candidate.team;
    if (wanted != "auto" && wanted != tier_name(team.tier)) continue;
    const cudaError_t error = room_for(call.number, call.dtype, team, s, backward);
    if (error == cudaSuccess) return team;
    TORCH_CHECK(wanted == "auto", call.function, ": ", Context::error_text(error), " for tier ",
                wanted, " with H = ", s.hidden, ", B = ", s.batch);
  }
  TORCH_CHECK(wanted == "auto", call.function, ": tier ", wanted, " cannot serve ", call.cell.mode,
              backward ? " backward" : " forward", " with H = ", s.hidden, ", B = ", s.batch,
              " on this device");
  return step;
}

ResidentMemory::ResidentMemory(const Call& call, const Team& team, bool backward,
                               cudaStream_t stream) {
  const auto bytes = [&](int64_t count) {
    return at::empty({count}, call.options.dtype(at::kByte));
  };
  exchange = bytes(exchange_bytes(call.dtype, team, call.D, backward));
  arrivals = bytes(arrival_bytes(team, call.D));
  resident = {team, nullptr, exchange.data_ptr(), static_cast<unsigned*>(arrivals.data_ptr())};
  if (!call.packed || team.tier == Tier::kStep) return;
  offsets = at::empty({call.T + 1}, call.options.dtype(at::kLong));
  resident.offsets = offsets.mutable_data_ptr<int64_t>();
  const cudaError_t error =
      write_offsets(offsets.mutable_data_ptr<int64_t>(), call.offsets.data(), call.T + 1, stream);
  TORCH_CHECK(error == cudaSuccess, call.function, ": ", Context::error_text(error),
              " in the launch that writes batch_sizes");
}

}  // namespace fastrnn::cuda
