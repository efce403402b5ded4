// Tier C: a team is a thread-block cluster. What a member makes is pushed into the shared memory of
// the others, and one cluster barrier ends a step. Clusters never wait for each other.
#pragma once

#include "resident_launch.cuh"

namespace fastrnn::cuda {

template <>
struct Link<Tier::kCluster> {
  static constexpr bool kThroughMemory = false;
  int members, rank;
  int row, column, rows_each;  // of this lane's words, and of a warp at once
  __device__ __forceinline__ Link(unsigned*, const Team& team, const Member& me, int words)
      : members(team.members),
        rank(me.rank),
        row(threadIdx.x % kWarp / words),
        column(threadIdx.x % kWarp % words),
        rows_each(kWarp / words) {}
  __device__ __forceinline__ void begin() const {
    cluster_arrive();
    cluster_wait();
  }
  __device__ __forceinline__ void arrive() const { cluster_arrive(); }
  __device__ __forceinline__ void wait() const { cluster_wait(); }

  // `rows` rows of words, `stride` apart, written by this block to its own memory, to the same
  // place in all others. A warp serves a member, each block beginning with the next after it.
  __device__ __forceinline__ void publish(Quad* slice, int stride, int rows) const {
    __syncthreads();
    if (row >= rows_each) return;
    for (int at = row; at < rows; at += rows_each) {
      Quad* word = slice + at * stride + column;
      const Quad quad = *word;
#pragma unroll 1
      for (int i = 1 + threadIdx.x / kWarp; i < members; i += kResidentWarps) {
        store_in_block(word, rank + i < members ? rank + i : rank + i - members, quad);
      }
    }
  }
  __device__ __forceinline__ void send(Pair* to, int owner, const Pair& pair) const {
    store_in_block(to, owner, pair);
  }
};

}  // namespace fastrnn::cuda
