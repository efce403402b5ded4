// Tier C: a team is a thread-block cluster. What a member makes is sent into the shared memory of
// the others, whose transaction barriers count what has come. Clusters never wait for each other.
#pragma once

#include "resident_launch.cuh"

namespace fastrnn::cuda {

template <>
struct Link<Tier::kCluster> {
  static constexpr bool kThroughMemory = false;
  // Two, which exchanges use in turn: a member may be one exchange ahead of another, never two,
  // because nobody ends one without having got the others' part of it.
  static_assert(link_bytes(Tier::kCluster) == 2 * sizeof(TransactionBarrier));
  TransactionBarrier* barriers;
  int members, rank, words;
  int row, column, rows_each;  // of this lane's words, and of a warp at once
  unsigned exchanges = 0;
  bool exchanging = false;

  __device__ __forceinline__ Link(unsigned*, const Team& team, const Member& me, int words_each)
      : barriers(reinterpret_cast<TransactionBarrier*>(shared_memory())),
        members(team.members),
        rank(me.rank),
        words(words_each),
        row(threadIdx.x % kWarp / words),
        column(threadIdx.x % kWarp % words),
        rows_each(kWarp / words) {}
  __device__ __forceinline__ void begin() const {
    if (threadIdx.x == 0) {
      init(barriers);
      init(barriers + 1);
    }
    cluster_arrive();
    cluster_wait();
  }
  __device__ __forceinline__ TransactionBarrier* barrier() const {
    return barriers + exchanges % 2;
  }
  __device__ __forceinline__ void expect(int bytes) {
    if (threadIdx.x == 0) cuda::expect(barrier(), bytes);
    exchanging = true;
  }
  __device__ __forceinline__ void arrive() const {}
  // Steps in which the team has no rows exchange nothing, and nobody waits.
  __device__ __forceinline__ void wait() {
    if (!exchanging) return;
    cuda::wait(barrier(), exchanges / 2 % 2);
    ++exchanges;
    exchanging = false;
  }

  // `rows` rows of words, `stride` apart, written by this block to its own memory, to the same
  // place in all others. A warp serves a member, each block beginning with the next after it.
  __device__ __forceinline__ void publish(Quad* slice, int stride, int rows) {
    __syncthreads();
    expect(rows * words * (members - 1) * static_cast<int>(sizeof(Quad)));
    if (row >= rows_each) return;
    for (int at = row; at < rows; at += rows_each) {
      Quad* word = slice + at * stride + column;
      const Quad quad = *word;
#pragma unroll 1
      for (int i = 1 + threadIdx.x / kWarp; i < members; i += kResidentWarps) {
        cuda::send(word, rank + i < members ? rank + i : rank + i - members, quad, barrier());
      }
    }
  }
  __device__ __forceinline__ void send(Pair* to, int owner, const Pair& pair) const {
    cuda::send(to, owner, pair, barrier());
  }
};

}  // namespace fastrnn::cuda
