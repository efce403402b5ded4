#include "parallel.h"

#include <pthread.h>
#include <sched.h>

// ThreadSanitizer does not see inside OpenMP's runtime, and would take the end of every region for
// a race: its builds define FASTRNN_STD_THREADS and get teams of std::thread.
#ifdef FASTRNN_STD_THREADS
#include <thread>
#include <vector>
#else
#include <omp.h>
#endif

namespace fastrnn::cpu {
namespace {

bool forked = false;

[[maybe_unused]] const int fork_hook = pthread_atfork(nullptr, nullptr, [] { forked = true; });

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

#ifdef FASTRNN_STD_THREADS
int usable_threads(int wanted) { return forked ? 1 : wanted; }

bool run_team(int threads, void (*body)(void*, int), void* context) {
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(body, context, i);
  body(context, 0);
  for (std::thread& other : others) other.join();
  return true;
}
#else
int usable_threads(int wanted) { return forked || omp_in_parallel() ? 1 : wanted; }

bool run_team(int threads, void (*body)(void*, int), void* context) {
  if (threads == 1) {
    body(context, 0);
    return true;
  }
  bool complete = true;
#pragma omp parallel num_threads(threads) shared(complete)
  {
    // Every thread sees the same team size, so either all of them run the body or none does.
    if (omp_get_num_threads() == threads) {
      body(context, omp_get_thread_num());
    } else if (omp_get_thread_num() == 0) {
      complete = false;
    }
  }
  return complete;
}
#endif

void Barrier::wait() const {
#ifdef FASTRNN_DROP_BARRIER
  // A planted race: barriers of this many threads are missing. The tests check that it is found.
  if (members == FASTRNN_DROP_BARRIER) return;
#endif
  constexpr int kSpins = 4000;
  const uint32_t mine = lines[me].count + 1;
  __atomic_store_n(&lines[me].count, mine, __ATOMIC_RELEASE);
  int spins = 0;
  for (int other = 0; other < members; ++other) {
    while (int32_t(__atomic_load_n(&lines[other].count, __ATOMIC_ACQUIRE) - mine) < 0) {
      if (++spins < kSpins) {
        pause_cpu();
      } else {
        sched_yield();
      }
    }
  }
}

}  // namespace fastrnn::cpu
