// Tier G: the blocks of a team run at the same time anywhere on the device, as a cooperative launch
// makes sure. They write to global memory, and a counter that all of them add to ends a step.
#pragma once

#include "resident_launch.cuh"

namespace fastrnn::cuda {

template <>
struct Link<Tier::kGrid> {
  static constexpr bool kThroughMemory = true;
  unsigned* counter;
  unsigned members, target = 0;
  __device__ __forceinline__ Link(unsigned* arrivals, const Team& team, const Member& me, int)
      : counter(arrivals + (me.d * team.teams + me.team) * kCounterWords), members(team.members) {}
  __device__ __forceinline__ void begin() {
    arrive();
    wait();
  }
  __device__ __forceinline__ void arrive() {
    __syncthreads();
    if (threadIdx.x == 0) release_add(counter);
    target += members;
  }
  __device__ __forceinline__ void wait() const {
    if (threadIdx.x == 0) acquire_wait(counter, target);
    __syncthreads();
  }
  __device__ __forceinline__ void publish(Quad*, int, int) const {}
  __device__ __forceinline__ void expect(int) const {}
  __device__ __forceinline__ void send(Pair* to, int, const Pair& pair) const { *to = pair; }
};

}  // namespace fastrnn::cuda
