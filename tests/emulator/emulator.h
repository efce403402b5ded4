// Gives the CUDA kernel sources their meaning on the CPU: each CUDA thread is a fiber, barriers are
// barriers of fibers, and a warp's collective operation exchanges its operands through memory. The
// kernels stay as they are; the folder include/ stands in for the toolkit's headers and this file
// for its built-in variables and functions.
//
// A launch runs to its end before it returns, unless a recorder takes it (see Work). The blocks
// that may wait for each other (a cluster, or all of a cooperative grid) are there at the same
// time; otherwise a block's threads go on to the next block by themselves, and nothing holds the
// threads of one block back from starting on it. Each block has shared memory of its own, poisoned,
// so a race between blocks is a race here too.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "fibers.h"
#include "include/cuda_runtime.h"

namespace emulator {

// What the device has; the tests make it smaller, which is another device with another index.
struct Device {
  int index = 0;
  int sms = 132, shared_per_block = 227 * 1024;
  int cluster_sms = 128;  // SMs that clusters of sixteen can use
};
inline Device device;

// The test of the tests: barriers of this kind do nothing, and then the race detector must speak.
enum class Missing { kNone, kBlock, kCluster, kGrid };
inline Missing missing = Missing::kNone;
// The same for the barriers at single places in the kernels' sources, as "file.cuh:line".
inline std::vector<std::string> missing_places;
bool is_missing(const char* file, int line);

struct Warp;

struct Thread {
  uint3 thread, block;
  unsigned rank, blocks;  // of the block, among those that are there at the same time
  unsigned char* shared;
  Barrier* block_barrier;
  Barrier* cluster_barrier;
  Warp* warp;
  uint64_t token;  // of the cluster barrier, from arrival to wait
  unsigned exchanges;
};
Thread& self();

// The stream of the bindings' calls. Only what is issued on it can be captured, so not what goes to
// the default stream.
inline const cudaStream_t stream = &device;

// What a stream is given to do, with everything that it takes to do it again, as a node of a CUDA
// graph has it: nothing refers to memory of the host.
struct Work {
  std::string what;
  std::function<cudaError_t()> run;
};
// While there is one, `stream` is being captured: its work is not done, but handed to the recorder.
inline std::function<void(Work)> recorder;
cudaError_t issue(cudaStream_t on, Work work);

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  unsigned cluster;  // blocks of a cluster, along x
  bool cooperative;
  cudaStream_t stream;
};
inline Launch last;  // of the launches so far
// So many blocks at the end of the grid are run, in each row of it: of grids too large to run all.
inline unsigned last_blocks = ~0u;
// While there is one, launches run there and not here: with the kernel's address and the bytes of
// its parameters, as a device gets them.
using Parameters = std::vector<std::string>;
inline std::function<void(const Launch&, const void* kernel, const Parameters&)> executor;
// `body` is what one thread does.
cudaError_t launch(const Launch& launch, const void* kernel, std::function<void()> body,
                   Parameters parameters);
cudaError_t allow_shared_memory(const void* kernel, int bytes);

void block_barrier(const char* file, int line);
void cluster_arrive(const char* file, int line);
void cluster_wait(const char* file, int line);

// The same place in the shared memory of another block of the cluster.
template <class T>
T* in_block(T* mine, unsigned rank);
unsigned char* shared_of(unsigned rank);

template <class T>
T* in_block(T* mine, unsigned rank) {
  return reinterpret_cast<T*>(shared_of(rank) +
                              (reinterpret_cast<unsigned char*>(mine) - self().shared));
}

// A transaction barrier: the bytes that are expected and have not come; twice the phases that are
// over, plus whether those of the phase are known.
class Transactions {
 public:
  explicit Transactions(uint32_t (&word)[2]) : due_(word[0]), phase_(word[1]) {}
  void expect(uint32_t bytes) {
    phase_.fetch_add(1, std::memory_order_release);
    count(bytes);
  }
  void complete(uint32_t bytes) { count(-bytes); }
  void wait(unsigned parity, const char* file, int line) {
    if (missing == Missing::kCluster || is_missing(file, line)) return;
    while ((phase_.load(std::memory_order_acquire) >> 1 & 1) == parity) give_way(true);
  }

 private:
  std::atomic_ref<uint32_t> due_, phase_;
  void count(uint32_t bytes) {
    if (due_.fetch_add(bytes, std::memory_order_acq_rel) + bytes != 0) return;
    if (phase_.load(std::memory_order_acquire) % 2) phase_.fetch_add(1, std::memory_order_release);
  }
};

inline void release_add(unsigned* counter) {
  if (missing != Missing::kGrid) std::atomic_ref(*counter).fetch_add(1, std::memory_order_release);
}
// Returns once the counter has come to `target`.
inline void acquire_wait(unsigned* counter, unsigned target) {
  if (missing == Missing::kGrid) return;
  while (static_cast<int>(std::atomic_ref(*counter).load(std::memory_order_acquire) - target) < 0)
    give_way(true);
}

// Operands of one lane of a mma, as the hardware holds them.
struct Fragments {
  std::array<uint32_t, 4> a;
  std::array<uint32_t, 2> b;
};
// Publishes this lane's operands to its warp, waits for all 32, returns everybody's; they stay
// valid until this lane's next exchange.
const std::array<Fragments, 32>& exchange(const Fragments& mine);

inline unsigned char* shared_memory() { return self().shared; }

template <class A>
A shuffle_xor(A value, int mask) {
  Fragments mine{};
  std::memcpy(mine.a.data(), &value, sizeof value);
  const auto& warp = exchange(mine);
  std::memcpy(&value, warp[self().thread.x % 32 ^ mask].a.data(), sizeof value);
  return value;
}

// Value i of the values packed into a word.
template <class Scalar>
float unpack(uint32_t word, int i);

// d += a b as the PTX manual lays the operands of m16n8k16 (16-bit) and m16n8k8 (tf32) out over a
// warp: word w of a row or column of K values is held by lane w % 4 of its group of four.
template <class Scalar>
void mma(float (&d)[4], const std::array<uint32_t, 4>& a, const std::array<uint32_t, 2>& b) {
  constexpr int kPacked = sizeof(uint32_t) / sizeof(Scalar);
  const auto& warp = exchange({a, b});
  const int lane = self().thread.x % 32;
  for (int out = 0; out < 4; ++out) {
    const int row = lane / 4 + out / 2 * 8, column = lane % 4 * 2 + out % 2;
    for (int word = 0; word < 8; ++word) {
      const uint32_t left = warp[row % 8 * 4 + word % 4].a[word / 4 * 2 + row / 8];
      const uint32_t right = warp[column * 4 + word % 4].b[word / 4];
      for (int i = 0; i < kPacked; ++i)
        d[out] += unpack<Scalar>(left, i) * unpack<Scalar>(right, i);
    }
  }
}

// To ten bits of mantissa, ties away from zero.
inline uint32_t round_to_tf32(uint32_t bits) { return (bits + 0x1000) & ~uint32_t{0x1fff}; }

Launch read(const cudaLaunchConfig_t& config);

template <class T>
std::string bytes_of(const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

}  // namespace emulator

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  return emulator::launch(emulator::read(*config), reinterpret_cast<const void*>(kernel),
                          [kernel, arguments...] { kernel(arguments...); },
                          {emulator::bytes_of(static_cast<Parameters>(arguments))...});
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  return emulator::allow_shared_memory(reinterpret_cast<const void*>(kernel), value);
}

// One block an SM, as the kernels that ask have registers for no more.
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t bytes) {
  *blocks = static_cast<int>(bytes) <= emulator::device.shared_per_block ? 1 : 0;
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel*,
                                           const cudaLaunchConfig_t* config) {
  const bool fits = static_cast<int>(config->dynamicSmemBytes) <= emulator::device.shared_per_block;
  *clusters =
      fits ? emulator::device.cluster_sms / static_cast<int>(emulator::read(*config).cluster) : 0;
  return cudaSuccess;
}

#define threadIdx (::emulator::self().thread)
#define blockIdx (::emulator::self().block)

#define __syncthreads() ::emulator::block_barrier(__FILE__, __LINE__)
