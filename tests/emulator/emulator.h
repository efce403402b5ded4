// Gives the CUDA kernel sources their meaning on the CPU: each CUDA thread is an OS thread, a
// block's barrier is a barrier of those threads, and a warp's collective operation exchanges its
// operands through memory. The kernels stay as they are; the folder include/ stands in for the
// toolkit's headers and this file for its built-in variables and functions.
//
// A launch runs to its end before it returns. All its threads walk over the blocks of the grid in
// order, but nothing holds the threads of one block back from starting on the next: each block has
// shared memory of its own, poisoned, so a race between blocks is a race here too.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <functional>

#include "include/cuda_runtime.h"

namespace emulator {

struct Thread {
  uint3 thread, block;
  unsigned char* shared;
};
inline thread_local Thread self{};

cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);
void block_barrier();
// The test of the tests: false removes every block barrier, and then the race detector must speak.
inline bool barriers = true;

// Operands of one lane of a mma, as the hardware holds them.
struct Fragments {
  std::array<uint32_t, 4> a;
  std::array<uint32_t, 2> b;
};
// Publishes this lane's operands to its warp, waits for all 32, returns everybody's; they stay
// valid until this lane's next exchange.
const std::array<Fragments, 32>& exchange(const Fragments& mine);

inline unsigned char* shared_memory() { return self.shared; }

// Value i of the values packed into a word.
template <class Scalar>
float unpack(uint32_t word, int i);

// d += a b as the PTX manual lays the operands of m16n8k16 (16-bit) and m16n8k8 (tf32) out over a
// warp: word w of a row or column of K values is held by lane w % 4 of its group of four.
template <class Scalar>
void mma(float (&d)[4], const std::array<uint32_t, 4>& a, const std::array<uint32_t, 2>& b) {
  constexpr int kPacked = sizeof(uint32_t) / sizeof(Scalar);
  const auto& warp = exchange({a, b});
  const int lane = self.thread.x % 32;
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

}  // namespace emulator

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  return emulator::launch(config->gridDim, config->blockDim, config->dynamicSmemBytes,
                          [&] { kernel(arguments...); });
}

#define threadIdx (::emulator::self.thread)
#define blockIdx (::emulator::self.block)

#define __syncthreads() ::emulator::block_barrier()
