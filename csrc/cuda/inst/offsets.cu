#include <algorithm>

#include "../primitives.cuh"
#include "../resident.h"

namespace fastrnn::cuda {

namespace {

constexpr int kOffsets = 400;  // of the 4096 bytes that a launch can carry
struct Offsets {
  int64_t value[kOffsets];
};

__global__ void store_offsets(int64_t* to, int count, const __grid_constant__ Offsets offsets) {
  for (int i = threadIdx.x; i < count; i += 32) to[i] = offsets.value[i];
}

}  // namespace

cudaError_t write_offsets(int64_t* to, const int64_t* values, int64_t count, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  for (int64_t first = 0; first < count && error == cudaSuccess; first += kOffsets) {
    const int now = static_cast<int>(std::min<int64_t>(kOffsets, count - first));
    Offsets offsets{};
    std::copy_n(values + first, now, offsets.value);
    error = launch(store_offsets, 1, 1, 32, 0, stream, to + first, now, offsets);
  }
  return error;
}

}  // namespace fastrnn::cuda
