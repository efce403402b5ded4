// Runs both passes of some kernels, with multiply-adds and with mma, for sanitizers to watch. The
// numbers do not matter here, only who touches what when. The argument says which kernels (step,
// norm, cta, cluster, grid), which run on packed rows and on padded ones with lengths and resets,
// or what is between two threads that share a value (shuffle, barrier). A second one plants a
// fault: an array that ends early (short) or begins between two values (shifted), a kind of barrier
// that is left out (block, cluster, grid), or, with more, single barriers, as file.cuh:line.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "some_kernels.h"

namespace {

using namespace fastrnn;
using namespace fastrnn::cuda;

bool ends_early = false, is_shifted = false;  // the saved gates

class NoLibrary : public Library {
  void product(const Matrix&, const Matrix&, const Matrix&, Transpose, bool) override {}
};

// Lengths from 0 to 3 and resets in every other step, as the kernels are told them.
std::vector<uint8_t> masked_rows(int64_t B, int64_t T, int64_t D) {
  std::vector<int64_t> lengths(B);
  const auto resets = std::make_unique<bool[]>(B * T);
  for (int64_t b = 0; b < B; ++b) lengths[b] = b % (T + 1);
  for (int64_t i = 0; i < B * T; i += 2) resets[i] = true;
  const RowSchedule row_schedule{T, 1, lengths.data(), resets.get()};
  std::vector<uint8_t> moments;
  for (int d = 0; d < D; ++d) {
    for (int64_t t = -1; t <= T; ++t) {
      for (int64_t b = 0; b < B; ++b)
        moments.push_back(static_cast<uint8_t>(row_schedule.moment(d, t, b).facts()));
    }
  }
  return moments;
}

template <class Scalar>
bool race(bool masked, int cell, Dtype dtype, const StepKernel& kernel, Resident resident = {}) {
  using A = Accumulate<Scalar>;
  const int64_t B = 9, H = 17, D = 2;
  const std::vector<int64_t> offsets =
      masked ? std::vector<int64_t>{0, B, 2 * B, 3 * B} : std::vector<int64_t>{0, B, B + 5, B + 6};
  const Schedule schedule(offsets, 1);
  const std::vector<uint8_t> moments = masked_rows(B, schedule.steps(), D);
  const int64_t N = schedule.total(), G = kCells[cell].gates;

  const auto scalars = [](int64_t count) { return std::vector<Scalar>(count); };
  auto gates = scalars(D * N * G * H), weights = scalars(G * H * H), states = scalars(D * B * H),
       output = scalars(N * D * H), hn = states, cn = states, product = scalars(D * B * G * H);
  auto saved = scalars(D * N * kCells[cell].saved * H - ends_early);
  char* const saved_gates = reinterpret_cast<char*>(saved.data()) + is_shifted;
  auto cell_output = output;
  std::vector<A> cells(D * N * H), carried(D * B * H), direct = carried;
  std::vector<A> statistics(D * N * 4), emitting(D * B * 2 * H);
  std::vector<A> grad_params(D * B * (2 * G + kCells[cell].all_param_rows()) * H);

  LayerForward forward{cell, dtype, kernel, schedule, {}};
  ForwardStep& f = forward.step;
  f.shape = {B, N, H, H, D};
  f.moments = masked ? moments.data() : nullptr;
  f.x_gates = gates.data();
  f.states.initial[0] = f.states.initial[1] = states.data();
  f.output = output.data();
  f.h_stride = D * H;
  f.saved = saved_gates;
  f.states.carried = cells.data();
  f.carried_rows = N;
  f.states.last[0] = hn.data();
  f.states.last[1] = cn.data();
  f.states.sequence[1] = masked ? cell_output.data() : nullptr;
  f.product = product.data();
  f.statistics = statistics.data();
  f.emitting = emitting.data();

  auto grad_x_gates = gates, grad_h_gates = gates, grad_h0 = states;
  const auto grad_output = output;
  LayerBackward backward{cell, dtype, kernel, schedule, {}};
  BackwardStep& b = backward.step;
  b.shape = f.shape;
  b.moments = f.moments;
  b.grad_output = grad_output.data();
  b.states.grad_sequence[1] = f.states.sequence[1];
  for (int k = 0; k < 2; ++k) b.states.grad_last[k] = b.states.initial[k] = states.data();
  b.output = output.data();
  b.states.carried = cells.data();
  b.saved = saved_gates;
  b.grad_x_gates = grad_x_gates.data();
  b.grad_h_gates = kCells[cell].shared_gate_grad ? b.grad_x_gates : grad_h_gates.data();
  b.direct = direct.data();
  b.grad_carried[1] = carried.data();
  b.states.grad_initial[0] = grad_h0.data();
  b.product = product.data();
  b.statistics = statistics.data();
  b.grad_params = grad_params.data();
  for (int d = 0; d < D; ++d) {
    f.w_hh[d] = b.w_hh_t[d] = weights.data();
    f.h[d] = output.data() + d * H;
    for (int k = 0; k < kCells[cell].params; ++k) f.params[d][k] = b.params[d][k] = weights.data();
  }

  // W_hh with rows that begin on sixteen bytes.
  auto resident_weights = scalars(G * H * padded(H));
  const Team& team = resident.team;
  std::vector<std::byte> exchange(
      std::max(exchange_bytes(dtype, team, D, false), exchange_bytes(dtype, team, D, true)));
  std::vector<unsigned> arrivals(arrival_bytes(team, D) / sizeof(unsigned));
  resident.offsets = masked ? nullptr : offsets.data();
  resident.weights[0] = resident.weights[1] = resident_weights.data();
  resident.exchange = exchange.data();
  resident.arrivals = arrivals.data();
  forward.resident = backward.resident = resident;

  NoLibrary library;
  return run(forward, library, nullptr).error == cudaSuccess &&
         run(backward, library, nullptr).error == cudaSuccess;
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
      return race<float>(masked, 1, Dtype::kFloat32, {}, {team}) &&
             race<__nv_bfloat16>(masked, 0, Dtype::kBfloat16, {}, {mma});
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
