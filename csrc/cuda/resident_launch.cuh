// From a team to the instantiated kernel, and the launch with its attributes. The inst/ files of a
// tier include its header, which brings the Link.
#pragma once

#include <algorithm>

#include "resident_backward.cuh"
#include "resident_forward.cuh"

namespace fastrnn::cuda {

template <class Scalar>
constexpr Dtype kDtype = Dtype::kFloat32;
template <>
constexpr Dtype kDtype<__nv_bfloat16> = Dtype::kBFloat16;
template <>
constexpr Dtype kDtype<__half> = Dtype::kFloat16;

// How many teams of this launch can run at the same time. The cluster attribute is in `config`.
template <class Params>
cudaError_t count_room(void (*kernel)(Params), const Team& team, const cudaLaunchConfig_t& config,
                       int64_t& teams) {
  int count = 0;
  if (team.tier == Tier::kCluster) {
    const cudaError_t error = cudaOccupancyMaxActiveClusters(&count, kernel, &config);
    teams = count;
    return error;
  }
  int device = 0, sms = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, kResidentThreads,
                                                          config.dynamicSmemBytes);
  teams = int64_t{count} * sms / team.members;
  return error;
}

template <class Params>
cudaError_t launch_resident(void (*kernel)(Params), const CellSizes& cell, Dtype dtype,
                            bool backward, const Params& params, cudaStream_t stream,
                            Residency& residency) {
  const Team& team = params.team;
  const int64_t directions = params.step.shape.directions;
  const int64_t bytes = shared_bytes(cell, dtype, team, params.step.shape.hidden, backward);
  if (bytes > kMostSharedBytes) return cudaErrorInvalidValue;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(bytes));
  if (error == cudaSuccess && team.tier == Tier::kCluster && team.members > 8)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error != cudaSuccess) return error;

  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(team.teams * team.members, static_cast<unsigned>(directions));
  config.blockDim = dim3(kResidentThreads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = &attribute;
  if (team.tier == Tier::kCluster) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = team.members;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.numAttrs = 1;
  } else if (team.tier == Tier::kGrid) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    config.numAttrs = 1;
  }
  error = count_room(kernel, team, config, residency.room);
  if (error != cudaSuccess) return error;
  const int64_t needed = team.tier == Tier::kGrid ? team.teams * directions : 1;
  if (residency.room < needed) return cudaErrorCooperativeLaunchTooLarge;
  if (!residency.launch) return cudaSuccess;
  if (team.tier == Tier::kGrid) {
    // Forward reads the padding of the exchange; backward reads what it has written.
    if (!backward) {
      const int64_t bytes_of_exchange = exchange_bytes(dtype, team, directions, backward);
      error = cudaMemsetAsync(params.exchange, 0, bytes_of_exchange, stream);
    }
    if (error == cudaSuccess)
      error = cudaMemsetAsync(params.arrivals, 0, arrival_bytes(team, directions), stream);
    if (error != cudaSuccess) return error;
  }
  return cudaLaunchKernelEx(&config, kernel, params);
}

// Calls f(std::bool_constant<tensor cores>, std::integral_constant<int, rows>).
template <class Scalar, Tier kTier, class F>
cudaError_t with_team(const Team& team, F f) {
  if (team.units % 8 != 0 || team.units > max_units(kTier, team.rows)) return cudaErrorInvalidValue;
  if constexpr (sizeof(Scalar) == sizeof(float)) {
    if (!team.tensor_cores && team.rows == 8)
      return f(std::false_type{}, std::integral_constant<int, 8>{});
  }
  if (team.tensor_cores && team.rows == 8)
    return f(std::true_type{}, std::integral_constant<int, 8>{});
  if constexpr (kTier != Tier::kCta) {
    if (team.tensor_cores && team.rows == 32)
      return f(std::true_type{}, std::integral_constant<int, 32>{});
  }
  return cudaErrorInvalidValue;
}

template <class Cell, class Scalar, Tier kTier>
cudaError_t resident_forward(const ForwardSequence& p, cudaStream_t stream, Residency& residency) {
  return with_team<Scalar, kTier>(p.team, [&](auto tensor_cores, auto rows) {
    constexpr bool kMma = decltype(tensor_cores)::value;
    constexpr int kRows = decltype(rows)::value;
    return launch_resident(resident_forward_kernel<Cell, Scalar, kMma, kRows, kTier>,
                           {Cell::kGates, Cell::kStates, Cell::kParams}, kDtype<Scalar>, false, p,
                           stream, residency);
  });
}

template <class Cell, class Scalar, Tier kTier>
cudaError_t resident_backward(const BackwardSequence& p, cudaStream_t stream,
                              Residency& residency) {
  return with_team<Scalar, kTier>(p.team, [&](auto tensor_cores, auto rows) {
    constexpr bool kMma = decltype(tensor_cores)::value;
    constexpr int kRows = decltype(rows)::value;
    return launch_resident(resident_backward_kernel<Cell, Scalar, kMma, kRows, kTier>,
                           {Cell::kGates, Cell::kStates, Cell::kParams}, kDtype<Scalar>, true, p,
                           stream, residency);
  });
}

}  // namespace fastrnn::cuda

#define FASTRNN_RESIDENT_FOR(Cell, Scalar, tier)                                                  \
  template cudaError_t resident_forward<Cell, Scalar, tier>(const ForwardSequence&, cudaStream_t, \
                                                            Residency&);                          \
  template cudaError_t resident_backward<Cell, Scalar, tier>(const BackwardSequence&,             \
                                                             cudaStream_t, Residency&);

#define FASTRNN_RESIDENT(Cell, tier)              \
  namespace fastrnn::cuda {                       \
  FASTRNN_RESIDENT_FOR(Cell, float, tier)         \
  FASTRNN_RESIDENT_FOR(Cell, __nv_bfloat16, tier) \
  FASTRNN_RESIDENT_FOR(Cell, __half, tier)        \
  }
