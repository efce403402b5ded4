#include "../launch.h"
#include "../primitives.cuh"

namespace fastrnn::cuda {

namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    store_moments(uint8_t* to, const __grid_constant__ RowSchedule schedule, int64_t batch) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t count = (schedule.steps + 2) * batch;
  if (at >= count) return;
  const int d = blockIdx.y;
  const Moment moment = schedule.moment(d, at / batch - 1, at % batch);
  to[d * count + at] = static_cast<uint8_t>(moment.facts());
}

}  // namespace

cudaError_t write_moments(uint8_t* to, const RowSchedule& schedule, int64_t batch,
                          int64_t directions, cudaStream_t stream) {
  const int64_t count = (schedule.steps + 2) * batch;
  const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  return launch(store_moments, blocks, directions, kThreads, 0, stream, to, schedule, batch);
}

}  // namespace fastrnn::cuda
