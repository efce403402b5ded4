#include "cuda_tier.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

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
