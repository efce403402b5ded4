// A call of a layer's kernels with all of its arrays, for programs of their own: forward and
// backward in both directions, on rows that lie close together or far apart.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <memory>
#include <vector>

#include "some_kernels.h"

namespace fastrnn::cuda {

constexpr int64_t kHidden = 17, kDirections = 2;
constexpr int kNoSpace = 77;

// A planted fault of the saved gates: they end a value early, or begin between two values.
inline bool ends_early = false, is_shifted = false;

// Zeros, exactly on the heap, where a sanitizer sees their end, or in reserved address space, of
// which only the pages that are touched exist.
template <class T>
std::shared_ptr<T[]> space(int64_t count) {
  const size_t bytes = count * sizeof(T);
  if (bytes < size_t{1} << 24) return std::shared_ptr<T[]>(new T[count]());
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::exit(kNoSpace);
  return {static_cast<T*>(memory), [bytes](T* data) { munmap(data, bytes); }};
}

// Where the rows of interest are: the batch rows from `first` on, of B, as many in step t as
// alive[t]; the rows of step t begin at offsets[t], and all end at the last of these.
struct Layout {
  int64_t B, first;
  std::vector<int64_t> alive, offsets;
  bool packed;  // offsets are no multiples of B

  int64_t steps() const { return static_cast<int64_t>(alive.size()); }
  int64_t total() const { return offsets.back(); }
};

inline Layout side_by_side(int64_t rows, int64_t first = 0) {
  const int64_t B = first + rows;
  return {B, first, {rows, rows, rows}, {0, B, 2 * B, 3 * B}, false};
}

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
      const int64_t at = l.first + (states ? part * l.B : part * l.total() + l.offsets[t]);
      for (int64_t i = 0; i < l.alive[t] * width; ++i) f(at * width + i, number++);
    }
  }
}

// Lengths from 0 to 3 and some resets, of up to sixteen rows.
inline Moment moment_of_row(int d, int64_t t, int64_t row) {
  static const int64_t lengths[] = {3, 0, 2, 1, 3, 3, 2, 3, 1, 0, 0, 3, 2, 2, 1, 3};
  static const bool resets[16 * 3] = {false, true, false, true, false, false, false, false, true};
  return RowSchedule{3, 1, lengths, resets}.moment(d, t, row);
}

// The two calls, ready to be made, and their arrays, with values in the rows of interest.
template <class Scalar>
class LayerRun {
 public:
  LayerRun(const Layout& layout, bool masked, int cell, Dtype dtype, const StepKernel& kernel,
           const Team& team = {}, int64_t R = kHidden);

  const Layout& layout;
  const Schedule schedule;
  LayerForward forward;
  LayerBackward backward;

 private:
  using A = Accumulate<Scalar>;

  template <class T>
  T* kept(const std::shared_ptr<T[]>& data) {
    spaces_.push_back(data);
    return data.get();
  }
  template <class T = Scalar>
  T* array(bool states, int64_t parts, int64_t width) {
    T* const data = kept(space<T>(parts * (states ? layout.B : layout.total()) * width));
    each(layout, states, parts, width,
         [&](int64_t at, unsigned number) { data[at] = value_of<T>(number + seed_); });
    seed_ += 1000003;
    return data;
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
    Scalar* const data = kept(space<Scalar>(count));
    for (int64_t i = 0; i < count; ++i) data[i] = value_of<Scalar>(seed_++);
    return data;
  }
  const uint8_t* moments();

  unsigned seed_ = 1;
  std::vector<std::shared_ptr<void>> spaces_;
};

template <class Scalar>
const uint8_t* LayerRun<Scalar>::moments() {
  const int64_t each_direction = (layout.steps() + 2) * layout.B;
  uint8_t* const data = kept(space<uint8_t>(kDirections * each_direction));
  for (int d = 0; d < kDirections; ++d) {
    for (int64_t t = -1; t <= layout.steps(); ++t) {
      for (int64_t row = 0; row < layout.alive[0]; ++row)
        data[d * each_direction + (t + 1) * layout.B + layout.first + row] =
            static_cast<uint8_t>(moment_of_row(d, t, row).facts());
    }
  }
  return data;
}

template <class Scalar>
LayerRun<Scalar>::LayerRun(const Layout& l, bool masked, int cell, Dtype dtype,
                           const StepKernel& kernel, const Team& team, int64_t R)
    : layout(l),
      schedule(l.offsets, 1),
      forward{cell, dtype, kernel, schedule, {}},
      backward{cell, dtype, kernel, schedule, {}} {
  const CellInfo& info = kCells[cell];
  const int64_t H = kHidden, D = kDirections, G = info.gates;
  const bool projected = R != H;

  forward.lengths = true;  // no copies of all rows of hn
  ForwardStep& f = forward.step;
  f.shape = {l.B, l.total(), H, R, D};
  f.moments = masked ? moments() : nullptr;
  f.x_gates = rows(D, G * H);
  f.states.initial[0] = states(R);
  f.states.initial[1] = states(H);
  Scalar* const output = rows(1, D * R);
  f.output = output;
  f.product = states(G * H);
  f.product_h0 = masked ? states(G * H) : nullptr;
  Scalar* const full = projected ? rows(D, H) : nullptr;
  f.h_stride = projected ? H : D * H;
  f.saved = ends_early ? kept(space<Scalar>(D * l.total() * info.saved * H - 1))
                       : rows(D, info.saved * H);
  f.saved = static_cast<char*>(f.saved) + is_shifted;
  f.states.carried = rows<A>(D, H);
  f.carried_rows = l.total();
  f.states.last[0] = states(R);
  f.states.last[1] = states(H);
  f.states.sequence[1] = masked ? rows(1, D * H) : nullptr;

  BackwardStep& b = backward.step;
  b.shape = f.shape;
  b.moments = f.moments;
  b.grad_output = rows(1, D * R);
  b.states.grad_sequence[1] = masked ? rows(1, D * H) : nullptr;
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
  b.grad_h_gates = info.shared_gate_grad ? b.grad_x_gates : rows(D, G * H);
  b.direct = states<A>(H);
  b.grad_carried[1] = states<A>(H);
  b.states.grad_initial[0] = states(R);
  if (info.statistics > 0) {
    f.statistics = rows<A>(D, info.statistics);
    f.emitting = states<A>(2 * H);
    b.statistics = f.statistics;
    b.grad_params = states<A>((2 * G + info.all_param_rows()) * H);
  }

  Resident resident{team, {}, l.packed ? l.offsets.data() : nullptr, nullptr, nullptr};
  for (int d = 0; d < D; ++d) {
    f.w_hh[d] = weights(G * H * R);
    b.w_hh_t[d] = weights(G * H * R);
    backward.w_hh[d] = weights(G * H * R);
    f.b_ih[d] = weights(G * H);
    f.b_hh[d] = weights(G * H);
    for (int k = 0; k < info.params; ++k)
      f.params[d][k] = b.params[d][k] = weights(info.param_rows(k) * H);
    forward.w_hr[d] = backward.w_hr[d] = projected ? weights(R * H) : nullptr;
    f.h[d] = projected ? full + d * l.total() * H : output + d * H;
    resident.weights[d] = weights(G * H * padded(H));
  }
  resident.exchange = kept(space<std::byte>(
      std::max(exchange_bytes(dtype, team, D, false), exchange_bytes(dtype, team, D, true))));
  resident.arrivals = kept(space<unsigned>(arrival_bytes(team, D) / sizeof(unsigned)));
  forward.resident = backward.resident = resident;
}

}  // namespace fastrnn::cuda
