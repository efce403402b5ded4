// From a team to the instantiated kernel, and the launch with its attributes. The inst/ files of a
// tier include its header, which brings the Link.
#pragma once

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

#include "resident_backward.cuh"
#include "resident_forward.cuh"

namespace fastrnn::cuda {

template <class Scalar>
constexpr Dtype kDtype = Dtype::kFloat32;
template <>
constexpr Dtype kDtype<__nv_bfloat16> = Dtype::kBfloat16;
template <>
constexpr Dtype kDtype<__half> = Dtype::kFloat16;

// Lets a kernel have all the shared memory that the device can give a block, and clusters of any
// size. Not what one call needs: another thread may set its own between this and the launch.
template <class Params>
cudaError_t lift_limits(void (*kernel)(Params), int device, Tier tier) {
  int most = 0;
  cudaError_t error =
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (error == cudaSuccess && tier == Tier::kCluster)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return error;
}

// How many teams of this launch can run at the same time. The cluster attribute is in `config`.
template <class Params>
cudaError_t count_room(void (*kernel)(Params), int device, const Team& team,
                       const cudaLaunchConfig_t& config, int64_t& teams) {
  int count = 0, sms = 0;
  cudaError_t error = lift_limits(kernel, device, team.tier);
  if (error == cudaSuccess && team.tier == Tier::kCluster) {
    error = cudaOccupancyMaxActiveClusters(&count, kernel, &config);
    teams = count;
    return error;
  }
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, kResidentThreads,
                                                          config.dynamicSmemBytes);
  teams = int64_t{count} * sms / team.members;
  return error;
}

// What count_room has said of a kernel, device, members and bytes: the driver takes microseconds to
// answer, and the answer does not change.
using RoomKey = std::tuple<const void*, int, int, int64_t>;
inline std::mutex rooms_mutex;
inline std::map<RoomKey, int64_t> rooms;

template <class Count>
cudaError_t kept_room(const RoomKey& key, int64_t& room, Count count) {
  const std::lock_guard<std::mutex> lock(rooms_mutex);
  const auto kept = rooms.find(key);
  if (kept != rooms.end()) {
    room = kept->second;
    return cudaSuccess;
  }
  const cudaError_t error = count(room);
  if (error == cudaSuccess) rooms.emplace(key, room);
  return error;
}

template <class Params>
cudaError_t launch_resident(void (*kernel)(Params), const CellSizes& cell, Dtype dtype,
                            bool backward, const Params& params, cudaStream_t stream, bool launch) {
  const Team& team = params.team;
  const int64_t directions = params.step.shape.directions;
  const int64_t bytes = shared_bytes(cell, dtype, team, params.step.shape.hidden, backward);
  if (bytes > kMostSharedBytes) return cudaErrorInvalidValue;

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
  int device = 0;
  int64_t room = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    const RoomKey key{reinterpret_cast<const void*>(kernel), device, team.members, bytes};
    error = kept_room(
        key, room, [&](int64_t& teams) { return count_room(kernel, device, team, config, teams); });
  }
  if (error != cudaSuccess) return error;
  const int64_t needed = team.tier == Tier::kGrid ? team.teams * directions : 1;
  if (room < needed) return cudaErrorCooperativeLaunchTooLarge;
  if (!launch) return cudaSuccess;
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

// Calls f with tensor cores or without, as the team has it and the type can.
template <class Scalar, class Rows, class F>
cudaError_t with_mma(const Team& team, Rows rows, F f) {
  if (team.tensor_cores) return f(std::true_type{}, rows);
  if constexpr (sizeof(Scalar) == sizeof(float)) return f(std::false_type{}, rows);
  return cudaErrorInvalidValue;
}

// Calls f(std::bool_constant<tensor cores>, std::integral_constant<int, rows>).
template <class Scalar, Tier kTier, class F>
cudaError_t with_team(const Team& team, F f) {
  if (team.rows < 1 || team.units % 8 != 0 || team.units > max_units(kTier, team.rows))
    return cudaErrorInvalidValue;
  if constexpr (kTier == Tier::kCta) {
    if (team.rows <= 4) return with_mma<Scalar>(team, std::integral_constant<int, 4>{}, f);
  }
  // The tiles of a kGrid team lie as far apart as a full one has rows.
  if (kTier == Tier::kGrid ? team.rows == 8 : team.rows <= 8)
    return with_mma<Scalar>(team, std::integral_constant<int, 8>{}, f);
  if constexpr (kTier != Tier::kCta) {
    if (team.tensor_cores && team.rows == 32)
      return f(std::true_type{}, std::integral_constant<int, 32>{});
  }
  return cudaErrorInvalidValue;
}

template <class Cell, class Scalar, Tier kTier, class Step>
cudaError_t run_sequence(const Sequence<Step>& p, cudaStream_t stream, bool launch) {
  return with_team<Scalar, kTier>(p.team, [&](auto tensor_cores, auto rows) {
    constexpr bool kMma = decltype(tensor_cores)::value;
    constexpr bool kBackward = std::is_same_v<Step, BackwardStep>;
    constexpr int kRows = decltype(rows)::value;
    void (*kernel)(Sequence<Step>);
    if constexpr (kBackward) {
      kernel = resident_backward_kernel<Cell, Scalar, kMma, kRows, kTier>;
    } else {
      kernel = resident_forward_kernel<Cell, Scalar, kMma, kRows, kTier>;
    }
    return launch_resident(kernel, {Cell::kGates, Cell::kStates, Cell::kParams}, kDtype<Scalar>,
                           kBackward, p, stream, launch);
  });
}

}  // namespace fastrnn::cuda

#define FASTRNN_RESIDENT_FOR(Cell, Scalar, tier)                                               \
  template cudaError_t run_sequence<Cell, Scalar, tier>(const ForwardSequence&, cudaStream_t,  \
                                                        bool);                                 \
  template cudaError_t run_sequence<Cell, Scalar, tier>(const BackwardSequence&, cudaStream_t, \
                                                        bool);

#define FASTRNN_RESIDENT(Cell, tier)              \
  namespace fastrnn::cuda {                       \
  FASTRNN_RESIDENT_FOR(Cell, float, tier)         \
  FASTRNN_RESIDENT_FOR(Cell, __nv_bfloat16, tier) \
  FASTRNN_RESIDENT_FOR(Cell, __half, tier)        \
  }
