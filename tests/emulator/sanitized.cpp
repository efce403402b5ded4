// Runs both passes of some kernels, with multiply-adds and with mma, for sanitizers to watch. The
// numbers do not matter here, only who touches what when. The argument says which kernels (step,
// norm, cta, cluster, grid), which run on packed rows and on padded ones with lengths and resets,
// or what is between two threads that share a value (shuffle, barrier). A second one plants a
// fault: an array that ends early (short) or begins between two values (shifted), a kind of barrier
// that is left out (block, cluster, grid), or, with more, single barriers, as file.cuh:line.
#include <cstdio>
#include <string>

#include "layer_run.h"

namespace {

using namespace fastrnn;
using namespace fastrnn::cuda;

class NoLibrary : public Library {
  void product(const Matrix&, const Matrix&, const Matrix&, Transpose, bool) override {}
};

template <class Scalar>
bool race(bool masked, int cell, Dtype dtype, const StepKernel& kernel, const Team& team = {}) {
  const Layout layout = masked ? side_by_side(9) : Layout{9, 0, {9, 5, 1}, {0, 9, 14, 15}, true};
  LayerRun<Scalar> call(layout, masked, cell, dtype, kernel, team);
  NoLibrary library;
  return run(call.forward, library, nullptr).error == cudaSuccess &&
         run(call.backward, library, nullptr).error == cudaSuccess;
}

// A value from one thread to another through shared memory. A shuffle in between orders nothing.
__global__ void hand_over(float* to, bool waits) {
  auto* const shared = reinterpret_cast<float*>(emulator::shared_memory());
  if (threadIdx.x == 0) *shared = 1;
  const float sum = emulator::shuffle_xor(1, 1);
  if (waits) __syncthreads();
  if (threadIdx.x == 1) *to = *shared + sum;
}

bool hands_over(bool waits) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(32);
  config.dynamicSmemBytes = sizeof(float);
  float value = 0;
  return cudaLaunchKernelEx(&config, hand_over, &value, waits) == cudaSuccess && value == 2;
}

}  // namespace

int main(int count, char** arguments) {
  using emulator::Missing;
  const std::string which = count > 1 ? arguments[1] : "", fault = count > 2 ? arguments[2] : "";
  ends_early = fault == "short";
  is_shifted = fault == "shifted";
  emulator::missing = fault == "block"     ? Missing::kBlock
                      : fault == "cluster" ? Missing::kCluster
                      : fault == "grid"    ? Missing::kGrid
                                           : Missing::kNone;
  if (emulator::missing == Missing::kNone) {
    emulator::missing_places.assign(arguments + std::min(count, 2), arguments + count);
  }
  bool ran =
      which == "cta" || which == "cluster" || which == "grid" || which == "step" || which == "norm";
  if (which == "shuffle" || which == "barrier") ran = hands_over(which == "barrier");
  for (const bool masked : {false, true}) {
    // Nine rows and 17 units: two tiles of eight rows, two or three members.
    const auto resident = [&](const Team& team) {
      Team mma = team;
      mma.tensor_cores = true;
      return race<float>(masked, 1, Dtype::kFloat32, {}, team) &&
             race<__nv_bfloat16>(masked, 0, Dtype::kBfloat16, {}, mma);
    };
    if (which == "cta") ran = ran && resident({Tier::kCta, false, 8, 1, 24, 2, 1});
    if (which == "cluster") ran = ran && resident({Tier::kCluster, false, 8, 3, 8, 2, 1});
    if (which == "grid") ran = ran && resident({Tier::kGrid, false, 8, 2, 16, 1, 2});
    if (which == "norm") ran = ran && race<float>(masked, 9, Dtype::kFloat32, {});
    if (which == "step") {
      ran = ran && race<double>(masked, 1, Dtype::kFloat64, {true, false, 8}) &&
            race<__nv_bfloat16>(masked, 0, Dtype::kBfloat16, {true, true, 8}) &&
            race<__nv_bfloat16>(masked, 0, Dtype::kBfloat16, {true, true, 32});
    }
  }
  std::puts(ran ? "ran" : "a launch failed");
  return ran ? 0 : 1;
}
