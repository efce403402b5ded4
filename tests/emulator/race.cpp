// Runs fused steps of both passes, with multiply-adds and with mma, for ThreadSanitizer to watch.
// The numbers do not matter here, only who touches what when. Called with an argument, it leaves
// out the kernels' barriers.
#include <cstdio>
#include <vector>

#include "../../csrc/cells/cell_info.h"
#include "../../csrc/cuda/layer.h"
#include "../../csrc/cuda/step.cuh"

// In the place of launch.cpp: only the kernels that run here, to keep the build short.
namespace fastrnn::cuda {

cudaError_t launch_forward(int, Dtype dtype, const StepKernel& kernel, const ForwardStep& step,
                           cudaStream_t stream) {
  return dtype == Dtype::kFloat64 ? forward_step<Gru, double>(kernel, step, stream)
                                  : forward_step<Lstm, __nv_bfloat16>(kernel, step, stream);
}

cudaError_t launch_backward(int, Dtype dtype, const StepKernel& kernel, const BackwardStep& step,
                            cudaStream_t stream) {
  return dtype == Dtype::kFloat64 ? backward_step<Gru, double>(kernel, step, stream)
                                  : backward_step<Lstm, __nv_bfloat16>(kernel, step, stream);
}

cudaError_t launch_gather_projected(Dtype, const BackwardStep&, cudaStream_t) {
  return cudaErrorInvalidValue;
}

}  // namespace fastrnn::cuda

namespace {

using namespace fastrnn;
using namespace fastrnn::cuda;

class NoLibrary : public Library {
  void product(const Matrix&, const Matrix&, const Matrix&, Transpose, bool) override {}
};

template <class Scalar>
bool race(int cell, Dtype dtype, const StepKernel& kernel) {
  using A = Accumulate<Scalar>;
  const int64_t B = 9, H = 17, D = 2;
  const Schedule schedule({0, B, B + 5, B + 6});  // packed: 9, 5 and 1 rows
  const int64_t N = schedule.total(), G = kCells[cell].gates;

  const auto scalars = [](int64_t count) { return std::vector<Scalar>(count); };
  auto gates = scalars(D * N * G * H), weights = scalars(G * H * H), states = scalars(D * B * H),
       output = scalars(N * D * H), saved = scalars(D * N * 4 * H), hn = states, cn = states;
  std::vector<A> cells(D * N * H), carried(D * B * H), direct = carried;

  LayerForward forward{cell, dtype, kernel, schedule, {}};
  ForwardStep& f = forward.step;
  f.shape = {B, N, H, H, D};
  f.x_gates = gates.data();
  f.h0 = f.c0 = states.data();
  f.output = output.data();
  f.h_stride = D * H;
  f.saved = saved.data();
  f.cell = cells.data();
  f.cell_rows = N;
  f.hn = hn.data();
  f.cn = cn.data();

  auto grad_x_gates = gates, grad_h_gates = gates, grad_h0 = states;
  const auto grad_output = output;
  LayerBackward backward{cell, dtype, kernel, schedule, {}};
  BackwardStep& b = backward.step;
  b.shape = f.shape;
  b.grad_output = grad_output.data();
  b.grad_hn = b.grad_cn = b.h0 = b.c0 = states.data();
  b.output = output.data();
  b.cell = cells.data();
  b.saved = saved.data();
  b.grad_x_gates = grad_x_gates.data();
  b.grad_h_gates = kCells[cell].shared_gate_grad ? b.grad_x_gates : grad_h_gates.data();
  b.direct = direct.data();
  b.grad_cell = carried.data();
  b.grad_h0 = grad_h0.data();
  for (int d = 0; d < D; ++d) {
    f.w_hh[d] = b.w_hh_t[d] = weights.data();
    f.h[d] = output.data() + d * H;
  }

  NoLibrary library;
  return run(forward, library, nullptr).error == cudaSuccess &&
         run(backward, library, nullptr).error == cudaSuccess;
}

}  // namespace

int main(int count, char**) {
  if (count > 1) emulator::missing = emulator::Missing::kBlock;
  const bool ran = race<double>(1, Dtype::kFloat64, {true, false, 8}) &&
                   race<__nv_bfloat16>(0, Dtype::kBFloat16, {true, true, 8}) &&
                   race<__nv_bfloat16>(0, Dtype::kBFloat16, {true, true, 32});
  std::puts(ran ? "ran" : "a launch failed");
  return ran ? 0 : 1;
}
