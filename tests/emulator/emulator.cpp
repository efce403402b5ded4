#include "emulator.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

// With AddressSanitizer a block's shared memory ends where the launch said, and with the block.
#ifdef FASTRNN_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
namespace {
constexpr size_t kGuardLines = 1;  // from block to block
}
#else
namespace {
void __asan_poison_memory_region(const volatile void*, size_t) {}
void __asan_unpoison_memory_region(const volatile void*, size_t) {}
constexpr size_t kGuardLines = 0;
}  // namespace
#endif

namespace emulator {

constexpr unsigned kWarp = 32;

// Operands alternate between two buffers, so one barrier per exchange is enough: nobody can write a
// buffer again before everybody has passed the barrier of the exchange in between. Shuffles and mma
// order no other memory.
struct Warp {
  Barrier barrier{kWarp, false};
  std::array<std::array<Fragments, kWarp>, 2> buffer;
};

namespace {

struct alignas(64) Line {
  unsigned char bytes[64];
};

// Bytes of shared memory that a kernel has asked for on a device.
std::map<std::pair<const void*, int>, int> allowed;
std::vector<Thread> threads;
std::vector<Line> shared;
size_t stride;  // from block to block, in units that keep each block's part aligned

}  // namespace

Thread& self() { return threads[fiber_index()]; }

unsigned char* shared_of(unsigned rank) {
  return self().shared +
         (int64_t{rank} - self().rank) * static_cast<int64_t>(stride * sizeof(Line));
}

cudaError_t allow_shared_memory(const void* kernel, int bytes) {
  if (bytes > device.shared_per_block) return cudaErrorInvalidValue;
  // Another thread may have asked for more, and not launched yet.
  int& before = allowed[{kernel, device.index}];
  if (bytes < before) return cudaErrorInvalidValue;
  before = bytes;
  return cudaSuccess;
}

Launch read(const cudaLaunchConfig_t& config) {
  Launch launch{config.gridDim, config.blockDim, config.dynamicSmemBytes, 1, false, config.stream};
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeClusterDimension)
      launch.cluster = attribute.val.clusterDim.x;
    if (attribute.id == cudaLaunchAttributeCooperative)
      launch.cooperative = attribute.val.cooperative != 0;
  }
  return launch;
}

cudaError_t issue(cudaStream_t on, Work work) {
  if (!recorder) return work.run();
  if (on != stream) return cudaErrorStreamCaptureImplicit;
  recorder(std::move(work));
  return cudaSuccess;
}

namespace {

// Runs the blocks of a launch, `together` of them at the same time.
void run_blocks(const Launch& launch, unsigned together, const std::function<void()>& body) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  const dim3 &grid = launch.grid, &block = launch.block;
  const unsigned across = std::min(grid.x, last_blocks), first = grid.x - across;
  const unsigned blocks = across * grid.y * grid.z;
  stride = (launch.shared_bytes + sizeof(Line) - 1) / sizeof(Line) + kGuardLines;
  shared.resize(stride * blocks);
  std::memset(static_cast<void*>(shared.data()), 0xff, shared.size() * sizeof(Line));  // NaN
  const auto poison = [&](unsigned number, size_t from) {
    auto* const begin = reinterpret_cast<unsigned char*>(shared.data() + stride * number);
    __asan_poison_memory_region(begin + from, stride * sizeof(Line) - from);
  };
  for (unsigned number = 0; number < blocks; ++number) poison(number, launch.shared_bytes);
  std::vector<unsigned> threads_left(blocks, block.x);
  std::vector<std::unique_ptr<Barrier>> barriers;
  std::vector<std::unique_ptr<Warp>> warps;
  for (unsigned i = 0; i < together; ++i) barriers.push_back(std::make_unique<Barrier>(block.x));
  for (unsigned i = 0; i < together * block.x / kWarp; ++i)
    warps.push_back(std::make_unique<Warp>());
  Barrier cluster_barrier(together * block.x);
  threads.assign(together * block.x, {});
  run_fibers(together * block.x, [&](unsigned index) {
    const unsigned rank = index / block.x;
    for (unsigned number = rank; number < blocks; number += together) {
      self() = {{index % block.x, 0, 0},
                {first + number % across, number / across % grid.y, number / across / grid.y},
                rank,
                together,
                reinterpret_cast<unsigned char*>(shared.data() + stride * number),
                barriers[rank].get(),
                &cluster_barrier,
                warps[index / kWarp].get(),
                0,
                self().exchanges};
      body();
      if (--threads_left[number] == 0) poison(number, 0);
    }
  });
  __asan_unpoison_memory_region(shared.data(), shared.size() * sizeof(Line));
}

}  // namespace

cudaError_t launch(const Launch& launch, const void* kernel, std::function<void()> body,
                   Parameters parameters) {
  const auto& [grid, block, bytes, cluster, cooperative, on] = launch;
  const size_t most = allowed[{kernel, device.index}];
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  const bool fits = block.y == 1 && block.z == 1 && block.x % kWarp == 0 && block.x <= 1024 &&
                    grid.y <= 65535 && grid.z <= 65535 && blocks > 0 &&
                    bytes <= std::max<size_t>(most, 48 * 1024) && cluster >= 1 && cluster <= 16 &&
                    grid.x % cluster == 0;
  if (!fits) return cudaErrorInvalidValue;
  if (cooperative && blocks > static_cast<uint64_t>(device.sms))
    return cudaErrorCooperativeLaunchTooLarge;

  last = launch;
  const std::string what = "launch of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) +
                           " blocks of " + std::to_string(block.x) + " threads";
  const unsigned together = cooperative ? static_cast<unsigned>(blocks) : cluster;
  return issue(on, {what, [launch, kernel, together, body = std::move(body),
                           parameters = std::move(parameters)] {
                      if (executor) {
                        executor(launch, kernel, parameters);
                      } else {
                        run_blocks(launch, together, body);
                      }
                      return cudaSuccess;
                    }});
}

bool is_missing(const char* file, int line) {
  if (missing_places.empty()) return false;
  const std::string place =
      std::filesystem::path(file).filename().string() + ":" + std::to_string(line);
  return std::find(missing_places.begin(), missing_places.end(), place) != missing_places.end();
}

void block_barrier(const char* file, int line) {
  if (missing == Missing::kBlock || is_missing(file, line)) return;
  Barrier& barrier = *self().block_barrier;
  barrier.wait(barrier.arrive());
}

void cluster_arrive(const char* file, int line) {
  if (missing == Missing::kCluster || is_missing(file, line)) return;
  self().token = self().cluster_barrier->arrive();
}

void cluster_wait(const char* file, int line) {
  if (missing == Missing::kCluster || is_missing(file, line)) return;
  self().cluster_barrier->wait(self().token);
}

const std::array<Fragments, 32>& exchange(const Fragments& mine) {
  Thread& thread = self();
  auto& buffer = thread.warp->buffer[thread.exchanges++ % 2];
  buffer[thread.thread.x % kWarp] = mine;
  thread.warp->barrier.wait(thread.warp->barrier.arrive());
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

cudaError_t cudaGetDevice(int* index) {
  *index = emulator::device.index;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? emulator::device.sms
                                                       : emulator::device.shared_per_block;
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return emulator::issue(stream, {"memset", [=] {
                                    std::memset(to, value, bytes);
                                    return cudaSuccess;
                                  }});
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t stream) {
  const auto copy = [=] {
    for (size_t row = 0; row < height; ++row) {
      std::memcpy(static_cast<char*>(to) + row * to_pitch,
                  static_cast<const char*>(from) + row * from_pitch, width);
    }
    return cudaSuccess;
  };
  return emulator::issue(stream, {"memcpy", copy});
}
