// Runs kernels on arrays of more than 2^32 values. They lie in reserved address space, of which
// only the pages that are touched exist; few rows are, far from the arrays' beginnings. The results
// must be, bit for bit, those of the same rows in arrays of their own. The argument says which
// kernels: step, cta, cluster, grid, or others.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/cuda/rebuild.h"
#include "some_kernels.h"

namespace {

using namespace fastrnn;
using namespace fastrnn::cuda;

constexpr int64_t kRows = 16, kHidden = 17, kDirections = 2;
constexpr int kNoSpace = 77;

template <class T>
class Space {
 public:
  explicit Space(int64_t count) : bytes_(count * sizeof(T)) {
    void* const memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::exit(kNoSpace);
    data = static_cast<T*>(memory);
  }
  Space(const Space&) = delete;
  ~Space() { munmap(data, bytes_); }
  T* data;

 private:
  size_t bytes_;
};

// Where the kRows rows of interest are: batch rows from `first` on, of B; the rows of step t begin
// at offsets[t] of `total`.
struct Layout {
  int64_t B, first;
  std::vector<int64_t> offsets;
  int64_t total;
  bool packed;  // offsets are no multiples of B

  int64_t steps() const { return static_cast<int64_t>(offsets.size()); }
  Rows rows(int d, int64_t position) const {
    const int64_t t = d == 1 ? steps() - 1 - position : position;
    if (t < 0 || t >= steps()) return {static_cast<int32_t>(t < 0 ? -B : total), 0};
    return {static_cast<int32_t>(offsets[t]), static_cast<int32_t>(B)};
  }
};

Layout side_by_side(int64_t first) {
  const int64_t B = first + kRows;
  return {B, first, {0, B, 2 * B}, 3 * B, false};
}
const Layout kNear = side_by_side(0), kBroad = side_by_side(int64_t{1} << 28);
// The gates of the second step's rows are on both sides of 2^32 values. To a resident kernel the
// steps seem to have more than B rows, so these fill whole tiles.
constexpr int64_t kMiddle = (int64_t{1} << 32) / (4 * kHidden) - 4;
const Layout kLong{kRows, 0, {5, kMiddle, int64_t{3} << 28}, int64_t{15} << 26, true};

template <class Scalar>
Scalar value_of(unsigned seed) {
  const unsigned mixed = (seed * 2654435761u) ^ (seed * 2246822519u >> 15);
  return Storage<Scalar>::narrow(static_cast<float>(mixed % 2001) / 1000 - 1);
}

// Calls f(where, number) for the values of the rows of interest in an array (parts, N, width), N
// the layout's rows, or (parts, B, width), if `states`.
template <class F>
void each(const Layout& l, bool states, int64_t parts, int64_t width, F f) {
  unsigned number = 0;
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t t = 0; t < (states ? 1 : l.steps()); ++t) {
      for (int64_t row = 0; row < kRows; ++row) {
        const int64_t at = states ? part * l.B : part * l.total + l.offsets[t];
        for (int64_t i = 0; i < width; ++i) f((at + l.first + row) * width + i, number++);
      }
    }
  }
}

// One pair of calls: its arrays, and the bytes of what the kernels have written to the rows of
// interest.
template <class Scalar>
class Run {
 public:
  Run(const Layout& layout, bool masked) : l_(layout), masked_(masked) {}
  std::vector<unsigned char> of(int cell, Dtype dtype, const StepKernel& kernel, Team team = {},
                                int64_t R = kHidden);

 private:
  using A = Accumulate<Scalar>;

  template <class T = Scalar>
  T* array(bool states, int64_t parts, int64_t width) {
    auto space = std::make_shared<Space<T>>(parts * (states ? l_.B : l_.total) * width);
    each(l_, states, parts, width,
         [&](int64_t at, unsigned number) { space->data[at] = value_of<T>(number + seed_); });
    seed_ += 1000003;
    spaces_.push_back(space);
    return space->data;
  }
  template <class T = Scalar>
  T* states(int64_t width) {
    return array<T>(true, kDirections, width);
  }
  template <class T = Scalar>
  T* rows(int64_t parts, int64_t width) {
    return array<T>(false, parts, width);
  }
  Scalar* weights(int64_t count) {
    auto values = std::make_shared<std::vector<Scalar>>(count);
    for (Scalar& value : *values) value = value_of<Scalar>(seed_++);
    spaces_.push_back(values);
    return values->data();
  }
  template <class T>
  void collect(const void* data, bool states, int64_t parts, int64_t width) {
    each(l_, states, parts, width, [&](int64_t at, unsigned) {
      const auto* bytes = reinterpret_cast<const unsigned char*>(static_cast<const T*>(data) + at);
      found_.insert(found_.end(), bytes, bytes + sizeof(T));
    });
  }
  const uint8_t* moments();
  template <class Step>
  cudaError_t steps(int cell, Dtype dtype, const StepKernel& kernel, Step step);

  const Layout& l_;
  const bool masked_;
  unsigned seed_ = 1;
  std::vector<std::shared_ptr<void>> spaces_;
  std::vector<unsigned char> found_;
};

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

// Lengths from 0 to 3 and some resets.
Moment moment_of_row(int d, int64_t t, int64_t row) {
  static const int64_t lengths[kRows] = {3, 0, 2, 1, 3, 3, 2, 3, 1, 0, 0, 3, 2, 2, 1, 3};
  static const bool resets[kRows * 3] = {false, true,  false, true, false,
                                         false, false, false, true};
  return RowSchedule{3, 1, lengths, resets}.moment(d, t, row);
}

template <class Scalar>
const uint8_t* Run<Scalar>::moments() {
  const int64_t each_direction = (l_.steps() + 2) * l_.B;
  auto space = std::make_shared<Space<uint8_t>>(kDirections * each_direction);
  for (int d = 0; d < kDirections; ++d) {
    for (int64_t t = -1; t <= l_.steps(); ++t) {
      for (int64_t row = 0; row < kRows; ++row)
        space->data[d * each_direction + (t + 1) * l_.B + l_.first + row] =
            static_cast<uint8_t>(moment_of_row(d, t, row).facts());
    }
  }
  spaces_.push_back(space);
  return space->data;
}

// The launches of run() for a Schedule that it could not have.
template <class Scalar>
template <class Step>
cudaError_t Run<Scalar>::steps(int cell, Dtype dtype, const StepKernel& kernel, Step step) {
  constexpr bool kForward = std::is_same_v<Step, ForwardStep>;
  cudaError_t error = cudaSuccess;
  for (int64_t i = 0; i < l_.steps() + !kForward && error == cudaSuccess; ++i) {
    const int64_t at = kForward ? i : l_.steps() - 1 - i;
    for (int d = 0; d < kDirections; ++d)
      step.step_rows[d] = {l_.rows(d, at - 1), l_.rows(d, at), l_.rows(d, at + 1)};
    if constexpr (kForward) {
      error = launch_forward(cell, dtype, kernel, step, nullptr);
    } else {
      error = launch_backward(cell, dtype, kernel, step, nullptr);
    }
  }
  return error;
}

template <class Scalar>
std::vector<unsigned char> Run<Scalar>::of(int cell, Dtype dtype, const StepKernel& kernel,
                                           Team team, int64_t R) {
  const int64_t H = kHidden, D = kDirections, G = kCells[cell].gates, K = kCells[cell].saved;
  const bool projected = R != H, shared = kCells[cell].shared_gate_grad;
  std::vector<int64_t> offsets = l_.offsets;
  offsets.push_back(l_.total);
  const Schedule schedule(offsets, 1);

  LayerForward forward{cell, dtype, kernel, schedule, {}};
  forward.lengths = true;  // no copies of all rows of hn
  ForwardStep& f = forward.step;
  f.shape = {l_.B, l_.total, H, R, D};
  f.moments = masked_ ? moments() : nullptr;
  f.x_gates = rows(D, G * H);
  f.states.initial[0] = states(R);
  f.states.initial[1] = states(H);
  f.output = rows(1, D * R);
  f.product = states(G * H);
  f.product_h0 = masked_ ? states(G * H) : nullptr;
  Scalar* const full = projected ? rows(D, H) : nullptr;
  f.h_stride = projected ? H : D * H;
  f.saved = rows(D, K * H);
  f.states.carried = rows<A>(D, H);
  f.carried_rows = l_.total;
  f.states.last[0] = states(R);
  f.states.last[1] = states(H);
  f.states.sequence[1] = masked_ ? rows(1, D * H) : nullptr;

  LayerBackward backward{cell, dtype, kernel, schedule, {}};
  BackwardStep& b = backward.step;
  b.shape = f.shape;
  b.moments = f.moments;
  b.grad_output = rows(1, D * R);
  b.states.grad_sequence[1] = masked_ ? rows(1, D * H) : nullptr;
  b.states.grad_last[0] = states(R);
  b.states.grad_last[1] = states(H);
  for (int k = 0; k < 2; ++k) b.states.initial[k] = f.states.initial[k];
  b.output = f.output;
  b.states.carried = f.states.carried;
  b.saved = f.saved;
  b.product = states(R);
  b.grad_full = projected ? states(H) : nullptr;
  b.grad_projected = projected ? rows(D, R) : nullptr;
  b.grad_x_gates = rows(D, G * H);
  b.grad_h_gates = shared ? b.grad_x_gates : rows(D, G * H);
  b.direct = states<A>(H);
  b.grad_carried[1] = states<A>(H);
  b.states.grad_initial[0] = states(R);

  Resident resident{team, {}, l_.packed ? offsets.data() : nullptr, nullptr, nullptr};
  for (int d = 0; d < D; ++d) {
    f.w_hh[d] = weights(G * H * R);
    b.w_hh_t[d] = weights(G * H * R);
    backward.w_hh[d] = weights(G * H * R);
    f.b_ih[d] = weights(G * H);
    f.b_hh[d] = weights(G * H);
    forward.w_hr[d] = backward.w_hr[d] = projected ? weights(R * H) : nullptr;
    f.h[d] = projected ? full + d * l_.total * H
                       : const_cast<Scalar*>(static_cast<const Scalar*>(f.output)) + d * H;
    resident.weights[d] = weights(G * H * padded(H));
  }
  std::vector<std::byte> exchange(
      std::max(exchange_bytes(dtype, team, D, false), exchange_bytes(dtype, team, D, true)));
  std::vector<unsigned> arrivals(arrival_bytes(team, D) / sizeof(unsigned));
  resident.exchange = exchange.data();
  resident.arrivals = arrivals.data();
  forward.resident = backward.resident = resident;

  emulator::last_blocks = l_.first > 0 ? 12 : ~0u;
  LastRows<Scalar> library;
  bool ran;
  if (l_.packed && team.tier == Tier::kStep) {
    ran = steps(cell, dtype, kernel, f) == cudaSuccess &&
          steps(cell, dtype, kernel, b) == cudaSuccess;
  } else {
    ran = run(forward, library, nullptr).error == cudaSuccess &&
          run(backward, library, nullptr).error == cudaSuccess;
  }
  if (!ran) throw std::runtime_error("a launch failed");

  collect<Scalar>(f.output, false, 1, D * R);
  collect<Scalar>(f.saved, false, D, K * H);
  if (!projected) collect<Scalar>(f.states.last[0], true, D, R);
  if (cell == 0) collect<A>(f.states.carried, false, D, H);
  if (cell == 0) collect<Scalar>(f.states.last[1], true, D, H);
  if (f.states.sequence[1]) collect<Scalar>(f.states.sequence[1], false, 1, D * H);
  collect<Scalar>(b.grad_x_gates, false, D, G * H);
  collect<Scalar>(b.grad_h_gates, false, D, G * H);
  collect<Scalar>(b.states.grad_initial[0], true, D, R);
  if (cell == 0) collect<A>(b.grad_carried[1], true, D, H);
  return found_;
}

// Whether the results are those of the rows in arrays of their own, wherever else they lie.
template <class Scalar, class... Arguments>
bool same(const Layout& far, bool masked, const Arguments&... call) {
  return Run<Scalar>(kNear, masked).of(call...) == Run<Scalar>(far, masked).of(call...);
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
      return Run<Scalar>(kNear, masked).of(cell, dtype, {}, tiles(kNear, t)) ==
             Run<Scalar>(far, masked).of(cell, dtype, {}, tiles(far, t));
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
  Space<uint8_t> moments(kDirections * count);
  Space<int64_t> lengths(B);
  Space<bool> resets(B * 3);
  for (int64_t row = 0; row < kRows; ++row) {
    lengths.data[first + row] = row % 4;
    resets.data[(first + row) * 3 + 1] = row % 2;
  }
  emulator::last_blocks = 12;
  const RowSchedule row_schedule{3, 1, lengths.data, resets.data};
  const RowSchedule near{3, 1, lengths.data + first, resets.data + first * 3};
  bool good = write_moments(moments.data, row_schedule, B, kDirections, nullptr) == cudaSuccess;
  for (int64_t row = 0; row < kDirections * kRows; ++row) {
    const int64_t d = row / kRows, b = row % kRows;
    const unsigned found = moments.data[(d + 1) * count - kRows + b];
    good = good && found == near.moment(static_cast<int>(d), 3, b).facts();
  }
  std::vector<double> results[2];
  for (const Layout* l : {&kNear, &kBroad}) {
    emulator::last_blocks = l->first > 0 ? 12 : ~0u;
    const int64_t rows = kDirections * l->total, width = 3 * kHidden;
    Space<double> x(rows * width), h(rows * width), saved(rows * 4 * kHidden);
    each(*l, false, kDirections, width, [&](int64_t at, unsigned number) {
      x.data[at] = value_of<double>(number);
      h.data[at] = value_of<double>(number + 1);
    });
    const Shape shape{l->B, l->total, kHidden, kHidden, kDirections};
    const Rebuild rebuild{shape, x.data, h.data, {}, {}, {}, {}, {}, saved.data};
    good = good && launch_rebuild(1, Dtype::kFloat64, rebuild, nullptr) == cudaSuccess;
    for (int d = 0; d < kDirections; ++d) {  // the rows of the last step, at the end of a direction
      const int64_t end = (d + 1) * l->total * 4 * kHidden;
      results[l->first > 0].insert(results[l->first > 0].end(),
                                   saved.data + end - kRows * 4 * kHidden, saved.data + end);
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
