#include "emulator.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <barrier>
#include <memory>
#include <thread>
#include <vector>

namespace emulator {

namespace {

constexpr int kWarp = 32;

// Operands alternate between two buffers, so one barrier per exchange is enough: nobody can write a
// buffer again before everybody has passed the barrier of the exchange in between.
struct Warp {
  std::barrier<> barrier{kWarp};
  std::array<std::array<Fragments, kWarp>, 2> buffer;
};

// A fixed team of threads that sleeps between launches.
class Team {
 public:
  explicit Team(unsigned size) : size_(size), ends_(size + 1), starts_(size + 1), block_(size) {
    for (unsigned i = 0; i < size / kWarp; ++i) warps_.push_back(std::make_unique<Warp>());
    for (unsigned i = 0; i < size; ++i) threads_.emplace_back([this, i] { work(i); });
  }
  ~Team() {
    kernel_ = nullptr;
    starts_.arrive_and_wait();
    for (std::thread& thread : threads_) thread.join();
  }

  unsigned size() const { return size_; }
  std::barrier<>& block() { return block_; }
  Warp& warp(unsigned thread) { return *warps_[thread / kWarp]; }

  void run(dim3 grid, size_t shared_bytes, const std::function<void()>& kernel) {
    grid_ = grid;
    // Room for every block, in units that keep each block's part aligned.
    stride_ = (shared_bytes + sizeof(Line) - 1) / sizeof(Line);
    shared_.resize(stride_ * grid.x * grid.y * grid.z);
    std::memset(static_cast<void*>(shared_.data()), 0xff,
                shared_.size() * sizeof(Line));  // NaN in every type
    kernel_ = &kernel;
    starts_.arrive_and_wait();
    ends_.arrive_and_wait();
  }

 private:
  struct alignas(64) Line {
    unsigned char bytes[64];
  };

  void work(unsigned index);

  unsigned size_;
  dim3 grid_;
  size_t stride_ = 0;
  std::vector<Line> shared_;
  const std::function<void()>* kernel_ = nullptr;
  std::barrier<> ends_, starts_, block_;
  std::vector<std::unique_ptr<Warp>> warps_;
  std::vector<std::thread> threads_;
};

std::unique_ptr<Team> team;
thread_local unsigned exchanges = 0;

void Team::work(unsigned index) {
  for (;;) {
    starts_.arrive_and_wait();
    if (!kernel_) return;
    self = {{index, 0, 0}, {0, 0, 0}, reinterpret_cast<unsigned char*>(shared_.data())};
    for (self.block.z = 0; self.block.z < grid_.z; ++self.block.z) {
      for (self.block.y = 0; self.block.y < grid_.y; ++self.block.y) {
        for (self.block.x = 0; self.block.x < grid_.x; ++self.block.x) {
          (*kernel_)();
          self.shared += stride_ * sizeof(Line);
        }
      }
    }
    ends_.arrive_and_wait();
  }
}

}  // namespace

cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes,
                   const std::function<void()>& kernel) {
  const bool fits = block.y == 1 && block.z == 1 && block.x % kWarp == 0 && block.x <= 1024 &&
                    grid.y <= 65535 && grid.z <= 65535 && grid.x > 0 && shared_bytes <= 48 * 1024;
  if (!fits) return cudaErrorInvalidValue;
  if (!team || team->size() != block.x) {
    team.reset();
    team = std::make_unique<Team>(block.x);
  }
  team->run(grid, shared_bytes, kernel);
  return cudaSuccess;
}

void block_barrier() {
  if (barriers) team->block().arrive_and_wait();
}

const std::array<Fragments, 32>& exchange(const Fragments& mine) {
  Warp& warp = team->warp(self.thread.x);
  auto& buffer = warp.buffer[exchanges++ % 2];
  buffer[self.thread.x % kWarp] = mine;
  warp.barrier.arrive_and_wait();
  return buffer;
}

template <>
float unpack<float>(uint32_t word, int /*i*/) {
  return std::bit_cast<float>(word);
}

template <>
float unpack<__half>(uint32_t word, int i) {
  const auto bits = static_cast<uint16_t>(word >> 16 * i);
  return __half2float({std::bit_cast<_Float16>(bits)});
}

template <>
float unpack<__nv_bfloat16>(uint32_t word, int i) {
  return __bfloat162float({static_cast<uint16_t>(word >> 16 * i)});
}

}  // namespace emulator
