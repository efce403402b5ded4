// Runs kernels on arrays of more than 2^32 values. They lie in reserved address space, of which
// only the pages that are touched exist; few rows are, far from the arrays' beginnings. The results
// must be, bit for bit, those of the same rows in arrays of their own. The argument says which
// kernels: step, cta, cluster, grid, or others.
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/cuda/rebuild.h"
#include "layer_run.h"

namespace {

using namespace fastrnn;
using namespace fastrnn::cuda;

constexpr int64_t kRows = 16;

const Layout kNear = side_by_side(kRows), kBroad = side_by_side(kRows, int64_t{1} << 28);
// The gates of the second step's rows are on both sides of 2^32 values. To a resident kernel the
// steps seem to have more than B rows, so these fill whole tiles.
constexpr int64_t kMiddle = (int64_t{1} << 32) / (4 * kHidden) - 4;
const Layout kLong{
    kRows, 0, {kRows, kRows, kRows}, {5, kMiddle, int64_t{3} << 28, int64_t{15} << 26}, true};

// Products of the last rows alone.
template <class Scalar>
class LastRows : public Library {
  void product(const Matrix& out, const Matrix& a, const Matrix& b, Transpose transpose,
               bool) override {
    const Array<Scalar> left(a.data), right(b.data);
    for (int64_t i = std::max<int64_t>(0, out.rows - kRows); i < out.rows; ++i) {
      for (int64_t j = 0; j < out.cols; ++j) {
        Accumulate<Scalar> sum = 0;
        for (int64_t k = 0; k < a.cols; ++k) {
          sum += left[i * a.stride + k] *
                 right[transpose == Transpose::kRight ? j * b.stride + k : k * b.stride + j];
        }
        store<Scalar>(out.data, i * out.stride + j, sum);
      }
    }
  }
};

// The rows of a step of a Layout, which no Schedule could have.
Rows rows_of(const Layout& l, int d, int64_t position) {
  const int64_t t = d == 1 ? l.steps() - 1 - position : position;
  if (t < 0 || t >= l.steps()) return {static_cast<int32_t>(t < 0 ? -l.B : l.total()), 0};
  return {static_cast<int32_t>(l.offsets[t]), static_cast<int32_t>(l.B)};
}

// The launches of run() on these rows.
template <class Layer>
cudaError_t steps(const Layout& l, const Layer& layer) {
  constexpr bool kForward = std::is_same_v<Layer, LayerForward>;
  auto step = layer.step;
  cudaError_t error = cudaSuccess;
  for (int64_t i = 0; i < l.steps() + !kForward && error == cudaSuccess; ++i) {
    const int64_t at = kForward ? i : l.steps() - 1 - i;
    for (int d = 0; d < kDirections; ++d)
      step.step_rows[d] = {rows_of(l, d, at - 1), rows_of(l, d, at), rows_of(l, d, at + 1)};
    if constexpr (kForward) {
      error = launch_forward(layer.cell, layer.dtype, layer.kernel, step, nullptr);
    } else {
      error = launch_backward(layer.cell, layer.dtype, layer.kernel, step, nullptr);
    }
  }
  return error;
}

// The bytes of what the kernels write to the rows of interest.
template <class Scalar>
std::vector<unsigned char> results(const Layout& l, bool masked, int cell, Dtype dtype,
                                   const StepKernel& kernel, const Team& team = {},
                                   int64_t R = kHidden) {
  LayerRun<Scalar> call(l, masked, cell, dtype, kernel, team, R);
  emulator::last_blocks = l.first > 0 ? 12 : ~0u;
  LastRows<Scalar> library;
  bool ran;
  if (l.packed && team.tier == Tier::kStep) {
    ran = steps(l, call.forward) == cudaSuccess && steps(l, call.backward) == cudaSuccess;
  } else {
    ran = run(call.forward, library, nullptr).error == cudaSuccess &&
          run(call.backward, library, nullptr).error == cudaSuccess;
  }
  if (!ran) throw std::runtime_error("a launch failed");

  std::vector<unsigned char> found;
  const auto collect = [&](const void* data, size_t size, bool states, int parts, int64_t width) {
    each(l, states, parts, width, [&](int64_t at, unsigned) {
      const auto* bytes = static_cast<const unsigned char*>(data) + at * size;
      found.insert(found.end(), bytes, bytes + size);
    });
  };
  const ForwardStep& f = call.forward.step;
  const BackwardStep& b = call.backward.step;
  constexpr size_t kScalar = sizeof(Scalar), kSum = sizeof(Accumulate<Scalar>);
  const int64_t H = kHidden, D = kDirections, GH = kCells[cell].gates * H;
  collect(f.output, kScalar, false, 1, D * R);
  collect(f.saved, kScalar, false, D, kCells[cell].saved * H);
  if (R == H) collect(f.states.last[0], kScalar, true, D, R);
  if (f.states.sequence[1]) collect(f.states.sequence[1], kScalar, false, 1, D * H);
  collect(b.grad_x_gates, kScalar, false, D, GH);
  collect(b.grad_h_gates, kScalar, false, D, GH);
  collect(b.states.grad_initial[0], kScalar, true, D, R);
  if (cell == 0) {
    collect(f.states.carried, kSum, false, D, H);
    collect(f.states.last[1], kScalar, true, D, H);
    collect(b.grad_carried[1], kSum, true, D, H);
  }
  return found;
}

// Whether the results are those of the rows in arrays of their own, wherever else they lie.
template <class Scalar, class... Arguments>
bool same(const Layout& far, bool masked, const Arguments&... call) {
  return results<Scalar>(kNear, masked, call...) == results<Scalar>(far, masked, call...);
}

bool same_steps() {
  bool good = true;
  for (const Layout* far : {&kBroad, &kLong}) {
    for (const bool masked : {false, true}) {
      if (masked && far == &kLong) continue;  // moments need rows side by side
      good = good && same<double>(*far, masked, 1, Dtype::kFloat64, StepKernel{true, false, 8});
      for (const int rows : {8, 32})
        good = good &&
               same<__nv_bfloat16>(*far, masked, 0, Dtype::kBfloat16, StepKernel{true, true, rows});
      if (far == &kLong) continue;  // whose launches have no products between them
      const StepKernel update{false, false, 0};
      good = good && same<double>(*far, masked, 1, Dtype::kFloat64, update) &&
             same<__nv_bfloat16>(*far, masked, 0, Dtype::kBfloat16, update) &&
             same<__nv_bfloat16>(*far, masked, 0, Dtype::kBfloat16, update, Team{}, int64_t{5});
    }
  }
  return good;
}

bool same_resident(Team team) {
  bool good = true;
  const auto check = [&](const Layout& far, bool masked) {
    const auto tiles = [&](const Layout& l, Team t) {
      t.teams = static_cast<int>((l.B + t.rows * t.tiles - 1) / (t.rows * t.tiles));
      return t;
    };
    const auto pair = [&](auto scalar, int cell, Dtype dtype, Team t) {
      using Scalar = decltype(scalar);
      return results<Scalar>(kNear, masked, cell, dtype, {}, tiles(kNear, t)) ==
             results<Scalar>(far, masked, cell, dtype, {}, tiles(far, t));
    };
    Team mma = team;
    mma.tensor_cores = true;
    good = good && pair(float{}, 1, Dtype::kFloat32, team) &&
           pair(__nv_bfloat16{}, 0, Dtype::kBfloat16, mma);
  };
  check(kLong, false);
  if (team.tier == Tier::kGrid) return good;  // whose blocks must all run at the same time
  check(kBroad, false);
  check(kBroad, true);
  return good;
}

// The moments of the last step's rows, and rebuilt gates.
bool same_others() {
  const int64_t first = kBroad.first, B = kBroad.B, count = (kBroad.steps() + 2) * B;
  const auto moments = space<uint8_t>(kDirections * count);
  const auto lengths = space<int64_t>(B);
  const auto resets = space<bool>(B * 3);
  for (int64_t row = 0; row < kRows; ++row) {
    lengths[first + row] = row % 4;
    resets[(first + row) * 3 + 1] = row % 2;
  }
  emulator::last_blocks = 12;
  const RowSchedule row_schedule{3, 1, lengths.get(), resets.get()};
  const RowSchedule near{3, 1, &lengths[first], &resets[first * 3]};
  bool good = write_moments(moments.get(), row_schedule, B, kDirections, nullptr) == cudaSuccess;
  for (int64_t row = 0; row < kDirections * kRows; ++row) {
    const int64_t d = row / kRows, b = row % kRows;
    const unsigned found = moments[(d + 1) * count - kRows + b];
    good = good && found == near.moment(static_cast<int>(d), 3, b).facts();
  }
  std::vector<double> results[2];
  for (const Layout* l : {&kNear, &kBroad}) {
    emulator::last_blocks = l->first > 0 ? 12 : ~0u;
    const int64_t rows = kDirections * l->total(), width = 3 * kHidden;
    const auto x = space<double>(rows * width), h = space<double>(rows * width),
               saved = space<double>(rows * 4 * kHidden);
    each(*l, false, kDirections, width, [&](int64_t at, unsigned number) {
      x[at] = value_of<double>(number);
      h[at] = value_of<double>(number + 1);
    });
    const Shape shape{l->B, l->total(), kHidden, kHidden, kDirections};
    const Rebuild rebuild{shape, x.get(), h.get(), {}, {}, {}, {}, {}, saved.get()};
    good = good && launch_rebuild(1, Dtype::kFloat64, rebuild, nullptr) == cudaSuccess;
    for (int d = 0; d < kDirections; ++d) {  // the rows of the last step, at the end of a direction
      const int64_t end = (d + 1) * l->total() * 4 * kHidden;
      results[l->first > 0].insert(results[l->first > 0].end(), &saved[end - kRows * 4 * kHidden],
                                   saved.get() + end);
    }
  }
  return good && results[0] == results[1];
}

}  // namespace

int main(int count, char** arguments) {
  const std::string which = count > 1 ? arguments[1] : "";
  bool good = false;
  // Two tiles of eight rows, two or three members.
  if (which == "step") good = same_steps();
  if (which == "cta") good = same_resident({Tier::kCta, false, 8, 1, 24, 0, 1});
  if (which == "cluster") good = same_resident({Tier::kCluster, false, 8, 3, 8, 0, 1});
  if (which == "grid") good = same_resident({Tier::kGrid, false, 8, 2, 16, 0, 2});
  if (which == "others") good = same_others();
  std::puts(good ? "same" : "different");
  return good ? 0 : 1;
}
