// A whole layer as one launch of a resident kernel.
#include <algorithm>
#include <iterator>

#include "../cells/cell_info.h"
#include "layer.h"

namespace fastrnn::cuda {

namespace {

Status outcome(cudaError_t error, const char* pass, int cell, Dtype dtype, const Team& team,
               const Shape& s) {
  if (error == cudaSuccess) return {};
  static constexpr const char* kNames[] = {"float64", "float32", "bfloat16", "float16"};
  return {error, std::string(kCells[cell].mode) + " " + pass + " in a resident kernel (" +
                     tier_name(team.tier) + (team.tensor_cores ? ", mma, " : ", fma, ") +
                     kNames[static_cast<int>(dtype)] + ", " + std::to_string(team.rows) +
                     " rows, " + std::to_string(team.members) + " x " + std::to_string(team.units) +
                     " units, " + std::to_string(team.teams) +
                     " teams) with B = " + std::to_string(s.batch) +
                     ", H = " + std::to_string(s.hidden) + ", D = " + std::to_string(s.directions)};
}

template <class Step, class Layer>
Sequence<Step> sequence_of(const Layer& layer) {
  const Resident& r = layer.resident;
  Sequence<Step> sequence{
      layer.step, r.team,     {},        layer.schedule.steps(), layer.schedule.forwards(),
      r.offsets,  r.exchange, r.arrivals};
  std::copy(std::begin(r.weights), std::end(r.weights), sequence.weights);
  return sequence;
}

}  // namespace

Status run_resident(const LayerForward& layer, cudaStream_t stream) {
  Residency residency{true, 0};
  const cudaError_t error =
      resident_forward(layer.cell, layer.dtype, sequence_of<ForwardStep>(layer), stream, residency);
  return outcome(error, "forward", layer.cell, layer.dtype, layer.resident.team, layer.step.shape);
}

Status run_resident(const LayerBackward& layer, cudaStream_t stream) {
  Residency residency{true, 0};
  const cudaError_t error = resident_backward(layer.cell, layer.dtype,
                                              sequence_of<BackwardStep>(layer), stream, residency);
  return outcome(error, "backward", layer.cell, layer.dtype, layer.resident.team, layer.step.shape);
}

cudaError_t room_for(int cell, Dtype dtype, const Team& team, const Shape& shape, bool backward) {
  Residency residency{false, 0};
  cudaError_t error;
  if (backward) {
    BackwardSequence sequence{};
    sequence.step.shape = shape;
    sequence.team = team;
    error = resident_backward(cell, dtype, sequence, nullptr, residency);
  } else {
    ForwardSequence sequence{};
    sequence.step.shape = shape;
    sequence.team = team;
    error = resident_forward(cell, dtype, sequence, nullptr, residency);
  }
  // To have asked in vain is no failure that a later look at the last error should find.
  if (error != cudaSuccess) static_cast<void>(cudaGetLastError());
  return error;
}

}  // namespace fastrnn::cuda
