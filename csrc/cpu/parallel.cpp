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

void Barrier::wait(int threads) {
#ifdef FASTRNN_DROP_BARRIER
  // A planted race: barriers of this many threads are missing. The tests check that it is found.
  if (threads == FASTRNN_DROP_BARRIER) return;
#endif
  constexpr int kSpins = 4000;
  const int32_t mine = __atomic_load_n(&generation, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == threads) {
    __atomic_store_n(&arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&generation, mine + 1, __ATOMIC_RELEASE);
    return;
  }
  for (int spins = 0; __atomic_load_n(&generation, __ATOMIC_ACQUIRE) == mine; ++spins) {
    if (spins < kSpins) {
      pause_cpu();
    } else {
      sched_yield();
    }
  }
}

}  // namespace fastrnn::cpu
