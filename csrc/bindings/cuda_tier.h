// Which kernels serve a call on the CUDA backend: one launch a step, or one for the sequence.
#pragma once

#include <compare>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "../cuda/tiers.h"
#include "cuda_call.h"
#include "cuda_context.h"

namespace fastrnn::cuda {

// Which kernels serve calls. "measured", the default: as "auto" where that was measured ahead of
// "step", see keep_tiers(); as "step" elsewhere. "step": a launch a step. "auto": the first
// candidate of the plan that was ahead of steps and has room. "cta", "cluster", "grid": the
// candidate of that tier, and an error if there is none or it has no room. Process-wide; does not
// concern projected LSTMs, zoneout, cells without W_hh or with norms, users' cells and float64,
// which have step kernels alone.
void override_tier(const std::string& tier, const TeamWish& wish);

// A kind of call. `training`: with a backward pass, in both passes.
struct TierKind {
  int device, cell;
  Dtype dtype;
  bool tf32, training;
  auto operator<=>(const TierKind&) const = default;
};
// At which shapes "auto" was measured ahead of "step".
struct TierRow {
  double steps, batch, hidden;
  bool ahead;
};
using TierRows = std::map<TierKind, std::vector<TierRow>>;

// What was measured on a device, in the place of what was kept for it. The rows nearest to a call,
// in the logarithms of T, B and H, decide. Kinds without rows go by kMeasuredCapability.
void keep_tiers(int device, const TierRows& rows);

// The team that serves the call; its tier is kStep if the step kernels do.
Team team_for(const Call& call, bool backward, const Context& context);

// A stack of equal layers, but for the width of their inputs, over a sequence.
struct Stack : PlannedLayer {
  int64_t layers;
  bool grad;  // there will be a backward pass
};

// How the stack runs on the device of `like`, in its dtype.
Wavefront wavefront_for(const at::Tensor& like, const Stack& stack);

// As many chunks, wherever there is room for a wavefront; fewer than two: none at all; nothing: as
// plan_wavefront() reckons. For experiments, and process-wide.
void override_wavefront(std::optional<int64_t> chunks);

// What serves a pass over a layer, and which resident kernels could.
struct PassPlan {
  StepKernel step;                  // of a launch a step
  std::vector<Candidate> resident;  // of one launch for the sequence
  int chosen = -1;                  // position in `resident`; -1: the step kernel serves
};

// Of a stack on the device of `like`, in its dtype.
struct StackPlan {
  PassPlan forward, backward;
  Wavefront layers;
};
StackPlan plan_stack(const at::Tensor& like, const Stack& stack);

// The memory of a resident launch, on the device of the call. `resident` refers to it.
struct ResidentMemory {
  at::Tensor offsets, exchange, arrivals;
  Tensors weights;
  Resident resident;
  ResidentMemory(const Call& call, const Team& team, bool backward, cudaStream_t stream);
};

}  // namespace fastrnn::cuda
