// Compiled without the race detector's instrumentation, because fibers share what is in here; the
// detector is told by hand who runs and who has waited for whom.
#include "fibers.h"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#ifdef FASTRNN_RACE_DETECTOR
#include <sanitizer/tsan_interface.h>
#else
namespace {
void* __tsan_get_current_fiber() { return nullptr; }
void* __tsan_create_fiber(unsigned) { return nullptr; }
void __tsan_switch_to_fiber(void*, unsigned) {}
void __tsan_acquire(void*) {}
void __tsan_release(void*) {}
constexpr unsigned __tsan_switch_to_fiber_no_sync = 1;
}  // namespace
#endif

namespace emulator {

struct Fiber {
  void* place[5];    // where it goes on
  ucontext_t start;  // where it begins, if it has not yet
  bool begun = true;
  void* detector = nullptr;
  unsigned index = 0;
  Fiber* next = nullptr;  // in the queue or the barrier that it stands in
  std::unique_ptr<char[]> stack;
};

namespace {

constexpr size_t kStack = 256 * 1024;

std::vector<std::unique_ptr<Fiber>> fibers;  // kept from run to run; their addresses stay
Fiber outside;                               // who called run_fibers
Fiber* running = &outside;
Fiber *first = nullptr, *last = nullptr;  // those that could run, in order
const std::function<void(unsigned)>* work = nullptr;
unsigned alive = 0;
uint64_t fruitless = 0;  // polls since anything else has happened
char begun, ended;

void enqueue(Fiber* fiber) {
  fiber->next = nullptr;
  (first ? last->next : first) = fiber;
  last = fiber;
}

[[noreturn, gnu::noinline]] void go_on(Fiber* fiber) {
  if (fiber->begun) __builtin_longjmp(fiber->place, 1);
  fiber->begun = true;
  setcontext(&fiber->start);
  std::abort();
}

// Not swapcontext: it asks the operating system for the signal mask, which takes longer than what
// most fibers do until they wait again.
[[gnu::noinline]] void run_next() {
  Fiber *from = running, *to = first;
  if (alive == 0) to = &outside;
  if (!to || (alive > 0 && fruitless > 1000 * uint64_t{alive})) {
    std::fputs("emulator: deadlock, every thread waits\n", stderr);
    std::_Exit(70);
  }
  if (alive > 0) first = to->next;
  if (from == to) return;
  running = to;
  __tsan_switch_to_fiber(to->detector, __tsan_switch_to_fiber_no_sync);
  if (!__builtin_setjmp(from->place)) go_on(to);
}

// A fiber's whole life: a run, and then the next.
void enter() {
  while (true) {
    __tsan_acquire(&begun);
    (*work)(running->index);
    __tsan_release(&ended);
    --alive;
    fruitless = 0;
    run_next();
  }
}

std::unique_ptr<Fiber> make_fiber(unsigned index) {
  auto fiber = std::make_unique<Fiber>();
  fiber->stack.reset(new char[kStack]);
  fiber->detector = __tsan_create_fiber(0);
  fiber->index = index;
  fiber->begun = false;
  getcontext(&fiber->start);
  fiber->start.uc_stack.ss_sp = fiber->stack.get();
  fiber->start.uc_stack.ss_size = kStack;
  fiber->start.uc_link = nullptr;
  makecontext(&fiber->start, enter, 0);
  return fiber;
}

}  // namespace

void run_fibers(unsigned count, const std::function<void(unsigned)>& body) {
  work = &body;
  alive = count;
  fruitless = 0;
  outside.detector = __tsan_get_current_fiber();
  for (unsigned i = 0; i < count; ++i) {
    if (i == fibers.size()) fibers.push_back(make_fiber(i));
    enqueue(fibers[i].get());
  }
  __tsan_release(&begun);
  run_next();
  __tsan_acquire(&ended);
}

unsigned fiber_index() { return running->index; }

void give_way(bool waits) {
  fruitless = waits ? fruitless + 1 : 0;
  enqueue(running);
  run_next();
}

uint64_t Barrier::arrive() {
  fruitless = 0;
  if (orders_memory_) __tsan_release(&order_[generation_ % 2]);
  const uint64_t token = generation_;
  if (++count_ == size_) {
    count_ = 0;
    ++generation_;
    while (waiting_) {
      Fiber* fiber = waiting_;
      waiting_ = fiber->next;
      enqueue(fiber);
    }
  }
  return token;
}

void Barrier::wait(uint64_t token) {
  if (generation_ == token) {
    running->next = waiting_;
    waiting_ = running;
    run_next();
  }
  if (orders_memory_) __tsan_acquire(&order_[token % 2]);
}

}  // namespace emulator
