// How long the barriers of the resident kernels take on the GPU at hand, and one kernel launch:
//
//   nvcc -std=c++20 -O3 -arch=sm_90 -o barriers benchmarks/barriers.cu && ./barriers > barriers.csv
//
// Prints `what,size,us`: cluster_barrier for a cluster of `size` blocks, grid_barrier for `size`
// blocks, launch and graph_launch for one empty kernel in a stream and in a CUDA graph, as the time
// from one to the next. The barriers are those of csrc/cuda/primitives.cuh, with nothing between
// arriving and waiting. What the GPU does not have is named on stderr and has no row; a call that
// fails ends the program with 1.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../csrc/cuda/primitives.cuh"
#include "../csrc/cuda/resident.h"

namespace {

using fastrnn::cuda::kResidentThreads;

// A launch costs more than a barrier: the difference between many and few is theirs alone.
constexpr int kFew = 1000, kMany = 11000;
constexpr int kRepeats = 7, kLaunches = 1000;
constexpr int kWarmUps = 50, kSpins = 1 << 21;  // some 5 ms each

__global__ void __launch_bounds__(kResidentThreads) cluster_barriers(int count) {
  for (int i = 0; i < count; ++i) {
    fastrnn::cuda::cluster_arrive();
    fastrnn::cuda::cluster_wait();
  }
}

__global__ void __launch_bounds__(kResidentThreads) grid_barriers(unsigned* counter, int count) {
  unsigned target = 0;
  for (int i = 0; i < count; ++i) {
    __syncthreads();
    if (threadIdx.x == 0) fastrnn::cuda::release_add(counter);
    target += gridDim.x;
    if (threadIdx.x == 0) fastrnn::cuda::acquire_wait(counter, target);
    __syncthreads();
  }
}

__global__ void nothing() {}

__global__ void spin(float* sink, int count) {
  float x = static_cast<float>(threadIdx.x);
  for (int i = 0; i < count; ++i) x = fmaf(x, 0.999f, 1.0f);
  if (x < 0.0f) *sink = x;  // never, but the compiler does not know
}

void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "barriers: %s: %s\n", call, cudaGetErrorString(error));
  std::exit(1);
}
#define CHECK(call) check(call, #call)

// Median milliseconds of what `enqueue` puts into the stream.
template <class F>
float time_of(cudaStream_t stream, F enqueue) {
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i <= kRepeats; ++i) {
    CHECK(cudaEventRecord(begin, stream));
    enqueue();
    CHECK(cudaEventRecord(end, stream));
    CHECK(cudaEventSynchronize(end));
    float milliseconds = 0;
    CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    if (i > 0) times.push_back(milliseconds);  // the first call loads the kernel
  }
  CHECK(cudaEventDestroy(begin));
  CHECK(cudaEventDestroy(end));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void print(const char* what, int size, float milliseconds, int count) {
  std::printf("%s,%d,%.4f\n", what, size, 1e3 * milliseconds / count);
  std::fflush(stdout);
}

int attribute(cudaDeviceAttr which) {
  int value = 0;
  CHECK(cudaDeviceGetAttribute(&value, which, 0));
  return value;
}

// Of `count` blocks as the resident kernels have them, with one attribute or none.
cudaLaunchConfig_t blocks(int count, cudaLaunchAttribute* attribute, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(count);
  config.blockDim = dim3(kResidentThreads);
  config.stream = stream;
  config.attrs = attribute;
  config.numAttrs = attribute ? 1 : 0;
  return config;
}

// A GPU that has been idle runs at a low clock for a while.
void warm_up(cudaStream_t stream) {
  float* sink = nullptr;
  CHECK(cudaMalloc(&sink, sizeof(float)));
  const cudaLaunchConfig_t config =
      blocks(attribute(cudaDevAttrMultiProcessorCount), nullptr, stream);
  for (int i = 0; i < kWarmUps; ++i) CHECK(cudaLaunchKernelEx(&config, spin, sink, kSpins));
  CHECK(cudaStreamSynchronize(stream));
  CHECK(cudaFree(sink));
}

void time_clusters(cudaStream_t stream) {
  cudaFuncAttributes built{};
  CHECK(cudaFuncGetAttributes(&built, cluster_barriers));
  const int capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                         attribute(cudaDevAttrComputeCapabilityMinor);
  if (capability < 90 || built.ptxVersion < 90) {
    std::fprintf(stderr,
                 "barriers: no cluster_barrier: GPU of sm_%d, code for sm_%d, both need 90\n",
                 capability, built.ptxVersion);
    return;
  }
  CHECK(cudaFuncSetAttribute(cluster_barriers, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  for (const unsigned size : {2u, 4u, 8u, 16u}) {
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = size;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    const cudaLaunchConfig_t config = blocks(size, &cluster, stream);
    int room = 0;
    const cudaError_t error = cudaOccupancyMaxActiveClusters(&room, cluster_barriers, &config);
    if (error != cudaSuccess || room == 0) {
      std::fprintf(stderr, "barriers: no cluster_barrier of %u blocks: %s\n", size,
                   error == cudaSuccess ? "no room for one" : cudaGetErrorString(error));
      (void)cudaGetLastError();  // so that it is not taken for a later call's
      continue;
    }
    const auto of = [&](int count) {
      return time_of(stream, [&] { CHECK(cudaLaunchKernelEx(&config, cluster_barriers, count)); });
    };
    print("cluster_barrier", static_cast<int>(size), of(kMany) - of(kFew), kMany - kFew);
  }
}

void time_grids(cudaStream_t stream) {
  if (!attribute(cudaDevAttrCooperativeLaunch)) {
    std::fprintf(stderr, "barriers: no grid_barrier: this GPU has no cooperative launch\n");
    return;
  }
  const int sms = attribute(cudaDevAttrMultiProcessorCount);
  unsigned* counter = nullptr;
  CHECK(cudaMalloc(&counter, sizeof(unsigned)));
  std::vector<int> sizes;
  for (const int size : {2, 8, 16, 32, 64, 96})
    if (size < sms) sizes.push_back(size);
  sizes.push_back(sms);
  for (const int size : sizes) {
    cudaLaunchAttribute cooperative{};
    cooperative.id = cudaLaunchAttributeCooperative;
    cooperative.val.cooperative = 1;
    const cudaLaunchConfig_t config = blocks(size, &cooperative, stream);
    const auto of = [&](int count) {
      return time_of(stream, [&] {
        CHECK(cudaMemsetAsync(counter, 0, sizeof(unsigned), stream));
        CHECK(cudaLaunchKernelEx(&config, grid_barriers, counter, count));
      });
    };
    print("grid_barrier", size, of(kMany) - of(kFew), kMany - kFew);
  }
  CHECK(cudaFree(counter));
}

void launch_nothing(cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = config.blockDim = dim3(1);
  config.stream = stream;
  for (int i = 0; i < kLaunches; ++i) CHECK(cudaLaunchKernelEx(&config, nothing));
}

void time_launches(cudaStream_t stream) {
  print("launch", 1, time_of(stream, [&] { launch_nothing(stream); }), kLaunches);
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  launch_nothing(stream);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&ready, graph, 0));
  print("graph_launch", 1, time_of(stream, [&] { CHECK(cudaGraphLaunch(ready, stream)); }),
        kLaunches);
  CHECK(cudaGraphExecDestroy(ready));
  CHECK(cudaGraphDestroy(graph));
}

}  // namespace

int main() {
  int devices = 0;
  CHECK(cudaGetDeviceCount(&devices));
  CHECK(cudaSetDevice(0));
  cudaStream_t stream;
  CHECK(cudaStreamCreate(&stream));
  std::printf("what,size,us\n");
  warm_up(stream);
  time_clusters(stream);
  time_grids(stream);
  time_launches(stream);
  CHECK(cudaStreamDestroy(stream));
  return 0;
}
