// Which kernels serve a call on the CUDA backend: one launch a step, or one for the sequence.
#pragma once

#include <string>

#include "../cuda/tiers.h"
#include "cuda_call.h"
#include "cuda_context.h"

namespace fastrnn::cuda {

// Resident kernels are chosen only while this says so, because no GPU has measured them yet.
// "step": never. "auto": the first candidate of the plan that has room. "cta", "cluster", "grid":
// the candidate of that tier, and an error if there is none or it has no room. Process-wide; does
// not concern projected LSTMs and float64, which have step kernels alone.
void override_tier(const std::string& tier, const TeamWish& wish);

// The team that serves the call; its tier is kStep if the step kernels do.
Team team_for(const Call& call, bool backward, const Context& context);

// For people: what would serve such a layer on the device of `like`, in its dtype, and which
// resident kernels could.
std::string describe_plan(const at::Tensor& like, int cell, int64_t batch, int64_t hidden,
                          int64_t recurrent, int64_t directions);

// The memory of a resident launch, on the device of the call. `resident` refers to it.
struct ResidentMemory {
  at::Tensor offsets, exchange, arrivals;
  Tensors weights;
  Resident resident;
  ResidentMemory(const Call& call, const Team& team, bool backward, cudaStream_t stream);
};

}  // namespace fastrnn::cuda
