// The only file that knows hardware. Under a host compiler the same names come from the emulator
// (tests/emulator), which gives them their documented meaning on CPU threads.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

namespace fastrnn::cuda {

constexpr int kWarp = 32;

// Sixteen bytes as four registers: what one lane loads at once, and a K-slice of an mma operand.
struct alignas(16) Quad {
  uint32_t word[4];
};

struct alignas(8) Pair {
  float value[2];
};

// Lies in shared memory and counts the bytes that blocks of the cluster send there. One thread says
// in every phase how many bytes to expect, before or after they come. The phase ends when they have
// all come, and who waits for it sees what they brought. A wait names the phase by its parity.
struct alignas(8) TransactionBarrier {
  uint32_t word[2];
};

}  // namespace fastrnn::cuda

#if defined(__CUDACC__)

namespace fastrnn::cuda {

// The dynamic shared memory of the block.
__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char fastrnn_shared_memory[];
  return fastrnn_shared_memory;
}

// d += a b on one 16 x 8 tile, a row-major, b column-major, K = 32 bytes: 16 values of a 16-bit
// type, 8 of tf32. Lane l holds of a: rows l/4 (a0, a2) and l/4 + 8 (a1, a3), the K-words l%4
// (a0, a1) and l%4 + 4 (a2, a3); of b: column l/4, the K-words l%4 (b0) and l%4 + 4 (b1); of d:
// rows l/4 (d0, d1) and l/4 + 8 (d2, d3), columns 2 (l%4) and 2 (l%4) + 1.
template <class Scalar>
__device__ __forceinline__ void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                    uint32_t a3, uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void mma<__half>(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                            uint32_t a3, uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else  // Turing multiplies half as deep: two of its products make one of these.
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(b0));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a2), "r"(a3), "r"(b1));
#endif
}

// Turing has neither bf16 nor tf32 products. plan() never chooses a kernel with them there; the
// trap makes a call that goes around plan() an error instead of a wrong answer.
template <>
__device__ __forceinline__ void mma<__nv_bfloat16>(float (&d)[4], uint32_t a0, uint32_t a1,
                                                   uint32_t a2, uint32_t a3, uint32_t b0,
                                                   uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  __trap();
#endif
}

// float operands: products of tf32, to which round_to_tf32 has brought them.
template <>
__device__ __forceinline__ void mma<float>(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                           uint32_t a3, uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  __trap();
#endif
}

// To the nearest tf32, ties away from zero, as cuBLAS and cuDNN round.
__device__ __forceinline__ uint32_t round_to_tf32(uint32_t bits) {
#if __CUDA_ARCH__ >= 800
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
#else
  return bits;
#endif
}

// To some 22 bits; what is denormal is 0.
__device__ __forceinline__ float exp2_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ __forceinline__ float reciprocal_approximate(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// The same value, of which the compiler knows nothing. So it does not keep what a loop makes of it
// in registers from turn to turn.
__device__ __forceinline__ int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

template <class A>
__device__ __forceinline__ A shuffle_xor(A value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Clusters. Every thread of every block of the cluster arrives, and later waits; what was written
// before the arrivals, in any block's shared memory, is seen after the wait. The instructions are
// for whole warps, whose lanes may come from different branches.
#if __CUDA_ARCH__ >= 900
constexpr bool kHasClusters = true;
__device__ __forceinline__ void cluster_arrive() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  __syncwarp();
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ uint32_t in_this_block(const void* mine) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(mine));
}
// The same place as `mine`, in the shared memory of the block with this rank.
__device__ __forceinline__ uint32_t in_block(const void* mine, int rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(in_this_block(mine)), "r"(rank));
  return there;
}
// One thread does this, before a barrier of the cluster.
__device__ __forceinline__ void init(TransactionBarrier* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(in_this_block(barrier)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void expect(TransactionBarrier* barrier, unsigned bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(in_this_block(barrier)),
      "r"(bytes)
      : "memory");
}
__device__ __forceinline__ void wait(TransactionBarrier* barrier, unsigned parity) {
  unsigned over;
  do {
    asm volatile(
        "{.reg .pred %%over; mbarrier.try_wait.parity.shared::cta.b64 %%over, [%1], %2; "
        "selp.u32 %0, 1, 0, %%over;}"
        : "=r"(over)
        : "r"(in_this_block(barrier)), "r"(parity)
        : "memory");
  } while (!over);
  __syncwarp();
}
// Both addresses are of this block; the value and the count go to the same places in the block with
// this rank.
__device__ __forceinline__ void send(Quad* mine, int rank, const Quad& quad,
                                     TransactionBarrier* barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(in_block(mine, rank)),
      "r"(quad.word[0]), "r"(quad.word[1]), "r"(quad.word[2]), "r"(quad.word[3]),
      "r"(in_block(barrier, rank))
      : "memory");
}
__device__ __forceinline__ void send(Pair* mine, int rank, const Pair& pair,
                                     TransactionBarrier* barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
          in_block(mine, rank)),
      "f"(pair.value[0]), "f"(pair.value[1]), "r"(in_block(barrier, rank))
      : "memory");
}
#else  // A kernel that asks for clusters has no body here, and plan() never chooses it.
constexpr bool kHasClusters = false;
__device__ __forceinline__ void cluster_arrive() { __trap(); }
__device__ __forceinline__ void cluster_wait() { __trap(); }
__device__ __forceinline__ void init(TransactionBarrier*) { __trap(); }
__device__ __forceinline__ void expect(TransactionBarrier*, unsigned) { __trap(); }
__device__ __forceinline__ void wait(TransactionBarrier*, unsigned) { __trap(); }
template <class T>
__device__ __forceinline__ void send(T*, int, const T&, TransactionBarrier*) {
  __trap();
}
#endif

// A barrier of blocks that run at the same time, on a counter that starts at zero and only grows.
// One thread of a block arrives for it, between two block barriers; likewise for the wait. A look
// at the counter goes to the L2 cache and back, a third of a microsecond at least: a wait of
// kMostLooks is one of twenty seconds for blocks that are not there, and ends in an error instead
// of a hang.
constexpr unsigned kMostLooks = 1u << 26;
__device__ __forceinline__ void release_add(unsigned* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
__device__ __forceinline__ void acquire_wait(unsigned* counter, unsigned target) {
#pragma unroll 1
  for (unsigned looks = 0; looks < kMostLooks; ++looks) {
    unsigned count;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
    if (static_cast<int>(count - target) >= 0) return;
  }
  __trap();
}

// What another block has written since this one has begun: not from a cache of this SM alone.
__device__ __forceinline__ Quad load_fresh(const Quad* from) {
  const uint4 quad = __ldcg(reinterpret_cast<const uint4*>(from));
  return {{quad.x, quad.y, quad.z, quad.w}};
}
__device__ __forceinline__ float load_fresh(const float* from) { return __ldcg(from); }

}  // namespace fastrnn::cuda

#else

#include "emulator.h"

namespace fastrnn::cuda {

inline unsigned char* shared_memory() { return emulator::shared_memory(); }

template <class Scalar>
inline void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                uint32_t b1) {
  emulator::mma<Scalar>(d, {a0, a1, a2, a3}, {b0, b1});
}

inline int opaque(int value) { return value; }
inline float exp2_approximate(float x) { return std::exp2(x); }
inline float reciprocal_approximate(float x) { return 1.0f / x; }

inline uint32_t round_to_tf32(uint32_t bits) { return emulator::round_to_tf32(bits); }

template <class A>
A shuffle_xor(A value, int mask) {
  return emulator::shuffle_xor(value, mask);
}

constexpr bool kHasClusters = true;
inline void cluster_arrive(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulator::cluster_arrive(file, line);
}
inline void cluster_wait(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulator::cluster_wait(file, line);
}
inline void init(TransactionBarrier* barrier) { *barrier = {}; }
inline void expect(TransactionBarrier* barrier, unsigned bytes) {
  emulator::Transactions(barrier->word).expect(bytes);
}
inline void wait(TransactionBarrier* barrier, unsigned parity, const char* file = __builtin_FILE(),
                 int line = __builtin_LINE()) {
  emulator::Transactions(barrier->word).wait(parity, file, line);
}
template <class T>
inline void send(T* mine, int rank, const T& value, TransactionBarrier* barrier) {
  *emulator::in_block(mine, rank) = value;
  emulator::Transactions(emulator::in_block(barrier, rank)->word).complete(sizeof value);
}

inline void release_add(unsigned* counter) { emulator::release_add(counter); }
inline void acquire_wait(unsigned* counter, unsigned target) {
  emulator::acquire_wait(counter, target);
}

template <class T>
inline T load_fresh(const T* from) {
  return *from;
}

}  // namespace fastrnn::cuda

#endif

namespace fastrnn::cuda {

// The sums over a block of kWarps warps of each value, in a fixed order: every thread gets them.
// Nothing else may touch `shared`, kWarps * kCount values, until the block's next barrier.
template <int kWarps, int kCount, class A>
__device__ __forceinline__ void block_sums(A (&values)[kCount], A* shared) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask /= 2) values[k] += shuffle_xor(values[k], mask);
    if (lane == 0) shared[k * kWarps + warp] = values[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    values[k] = shared[k * kWarps];
#pragma unroll
    for (int other = 1; other < kWarps; ++other) values[k] += shared[k * kWarps + other];
  }
}

// Launches nothing where there are no blocks.
template <class... Params, class... Arguments>
cudaError_t launch(void (*kernel)(Params...), unsigned blocks, int64_t directions, int threads,
                   int shared_bytes, cudaStream_t stream, const Arguments&... arguments) {
  if (blocks == 0) return cudaSuccess;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks, static_cast<unsigned>(directions));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace fastrnn::cuda
