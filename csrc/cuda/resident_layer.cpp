// A whole layer as one launch of a resident kernel.
#include <algorithm>
#include <iterator>

#include "../cells/cell_info.h"
#include "layer.h"

namespace fastrnn::cuda {

namespace {

std::string description(const char* pass, int cell, Dtype dtype, const Team& team, const Shape& s) {
  static constexpr const char* kNames[] = {"float64", "float32", "bfloat16", "float16"};
  return std::string(kCells[cell].mode) + " " + pass + " in a resident kernel (" +
         tier_name(team.tier) + (team.tensor_cores ? ", mma, " : ", fma, ") +
         kNames[static_cast<int>(dtype)] + ", " + std::to_string(team.rows) + " rows, " +
         std::to_string(team.members) + " x " + std::to_string(team.units) + " units, " +
         std::to_string(team.teams) + " teams) with B = " + std::to_string(s.batch) +
         ", H = " + std::to_string(s.hidden) + ", D = " + std::to_string(s.directions);
}

template <class Step, class Layer>
Status run(const Layer& layer, const Step& step, const char* pass, cudaStream_t stream) {
  const Resident& r = layer.resident;
  Sequence<Step> sequence{
      step,      r.team,     {},        layer.schedule.steps(), layer.schedule.forwards(),
      r.offsets, r.exchange, r.arrivals};
  std::copy(std::begin(r.weights), std::end(r.weights), sequence.weights);
  const cudaError_t error = run_sequence(layer.cell, layer.dtype, sequence, stream, true);
  if (error == cudaSuccess) return {};
  return {error, description(pass, layer.cell, layer.dtype, r.team, step.shape)};
}

template <class Step>
cudaError_t room_for(int cell, Dtype dtype, const Team& team, const Shape& shape) {
  Sequence<Step> sequence{};
  sequence.step.shape = shape;
  sequence.team = team;
  return run_sequence(cell, dtype, sequence, nullptr, false);
}

}  // namespace

Status run_resident(const LayerForward& layer, cudaStream_t stream) {
  return run(layer, layer.step, "forward", stream);
}

Status run_resident(const LayerBackward& layer, cudaStream_t stream) {
  return run(layer, layer.step, "backward", stream);
}

cudaError_t room_for(int cell, Dtype dtype, const Team& team, const Shape& shape, bool backward) {
  const cudaError_t error = backward ? room_for<BackwardStep>(cell, dtype, team, shape)
                                     : room_for<ForwardStep>(cell, dtype, team, shape);
  // Clears the error: this was only a query.
  if (error != cudaSuccess) static_cast<void>(cudaGetLastError());
  return error;
}

}  // namespace fastrnn::cuda
