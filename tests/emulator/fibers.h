// Threads of control on one OS thread, which change places only where they wait. All of it is
// deterministic, and a wait that nobody can end is found and reported.
#pragma once

#include <cstdint>
#include <functional>

namespace emulator {

struct Fiber;

// Runs body(0) .. body(count - 1) as fibers, until all have returned.
void run_fibers(unsigned count, const std::function<void(unsigned)>& body);

// The number of the fiber that runs.
unsigned fiber_index();

// Lets the others run. `waits`: this fiber polls for something, and has not found it.
void give_way(bool waits);

// A barrier of `size` fibers. arrive() gives the token that wait() takes, as in std::barrier. Where
// it orders memory, the race detector knows that what is written before an arrival is seen after
// the wait.
class Barrier {
 public:
  explicit Barrier(unsigned size, bool orders_memory = true)
      : size_(size), orders_memory_(orders_memory) {}
  uint64_t arrive();
  void wait(uint64_t token);

 private:
  unsigned size_, count_ = 0;
  bool orders_memory_;
  uint64_t generation_ = 0;
  Fiber* waiting_ = nullptr;
  char order_[2] = {};  // what the race detector knows a generation by
};

}  // namespace emulator
