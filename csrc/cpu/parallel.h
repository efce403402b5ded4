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

// How often a thread has arrived at its barriers, on a cache line that nobody else writes. Starts
// zeroed.
struct alignas(64) Arrivals {
  uint32_t count;
};

// A barrier among `members` threads, as the one numbered `me` sees it. Everybody tells on a line of
// their own and watches the others': no line is fought for, and the last to arrive is known of as
// soon as its line has crossed. Spins shortly, then yields, so that more threads than cores still
// make progress.
struct Barrier {
  Arrivals* lines;
  int members, me;

  void wait() const;
};

}  // namespace fastrnn::cpu
