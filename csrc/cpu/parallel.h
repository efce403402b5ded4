// Threads for the kernels: one parallel region for a whole layer call, and a barrier inside it.
#pragma once

#include <cstdint>

namespace fastrnn::cpu {

// Threads that a call may really use: one inside somebody else's parallel region and in a forked
// child (OpenMP's workers do not survive fork), else `wanted`.
int usable_threads(int wanted);

// Calls body(context, thread) for each thread in 0 .. threads - 1, all at the same time, and
// returns true; or calls nothing and returns false where the runtime grants fewer threads.
bool run_team(int threads, void (*body)(void* context, int thread), void* context);

// A barrier for a fixed number of threads; starts zeroed. Spins shortly, then yields, so that more
// threads than cores still make progress.
struct alignas(64) Barrier {
  int32_t arrived;
  int32_t generation;

  void wait(int threads);
};

}  // namespace fastrnn::cpu
