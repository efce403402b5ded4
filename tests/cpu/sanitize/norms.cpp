// Runs the cells that normalise rows over small odd shapes on one instruction set, forward and
// backward, in memory that is exactly as large as it has to be. Workspace and results begin as NaN,
// and every division among threads must give what one thread gives: a value read before it is
// written, or not written, shows. tests/cpu/test_sanitizers.py builds it.
//
//   norms ISA [--short-workspace]
#include <cstdio>
#include <string>

#include "../../../csrc/cells/cell_info.h"
#include "../../../csrc/cpu/dispatch.h"
#include "buffer.h"
#include "forced_plan.h"
#include "layers.h"

namespace cpu = fastrnn::cpu;

namespace {

constexpr Shape kShapes[] = {{1, 1, 1, 1},   {2, 5, 3, 17}, {4, 3, 1, 1},
                             {2, 17, 1, 33}, {2, 0, 3, 3},  {3, 4, 17, 20}};
constexpr Division kDivisions[] = {{1, 1, 1}, {1, 2, 1}, {1, 3, 1},
                                   {1, 1, 2}, {2, 1, 1}, {2, 2, 1}};
constexpr Schedule kSchedules[] = {{"", false, false, false, false},
                                   {" order", true, false, false, true},
                                   {" resets reverse", false, true, true, true}};
constexpr Dtype kDtypes[] = {Dtype::kFloat64, Dtype::kFloat32, Dtype::kBfloat16, Dtype::kFloat16};
constexpr double kTolerances[] = {1e-9, 1e-3, 3e-1, 3e-2};  // a narrow row multiplies rounding

int failures = 0, runs = 0;
bool short_workspace = false;

template <class Params>
void launch(size_t (*measure)(const Params&), void (*kernel)(const Params&), Params* p) {
  const size_t bytes = measure(*p) - (short_workspace ? 1 : 0);
  if (posix_memalign(&p->workspace, 64, bytes) != 0) std::abort();
  std::memset(p->workspace, 0xff, bytes);
  kernel(*p);
  std::free(p->workspace);
}

// What forward and backward of a layer give, one after another, but for the rows nobody writes.
Values results(const Layer& l, int cell, Dtype dtype, const Division& division) {
  const fastrnn::CellInfo& info = fastrnn::kCells[cell];
  const Dtype wide = dtype == Dtype::kFloat64 ? dtype : Dtype::kFloat32;
  const int64_t N = l.rows(), G = info.gates, GH = G * l.H, states = l.D * l.batch;
  const bool projected = l.R != l.H, c = info.states > 1, sequences = c && !l.grad_cells.empty();
  const cpu::Kernels& kernels = cpu::kernels(dtype, 1);
  forced = division;
  std::mt19937 random(3);
  std::vector<Buffer> kept;
  const auto input = [&](const Values& values) -> void* {
    if (values.empty()) return nullptr;
    kept.emplace_back(dtype, values, int(kept.size() % 2));
    return kept.back().get();
  };
  cpu::DirectionWeights weights[2]{};
  for (int d = 0; d < l.D; ++d) {
    const Direction& w = l.weights[d];
    weights[d] = {input(w.w_ih), input(w.w_hh), input(w.b_ih), input(w.b_hh), input(w.w_hr), {}};
    for (int k = 0; k < info.params; ++k)
      weights[d].params[k] = input(draw(&random, info.param_rows(k) * l.H, 64));
  }
  Buffer output(dtype, l.outer_rows() * l.D * l.R), hn(dtype, states * l.R),
      cn(dtype, states * l.H);
  Buffer sequence(dtype, sequences ? l.outer_rows() * l.D * l.H : 0);
  Buffer gates(dtype, l.D * N * info.saved * l.H), carried(wide, c ? l.D * N * l.H : 0);
  Buffer statistics(wide, l.D * N * info.statistics), hidden(dtype, projected ? l.D * N * l.H : 0);
  cpu::ForwardParams f{};
  f.shape = {cell,
             dtype,
             l.T,
             l.B,
             l.I,
             l.H,
             l.R,
             l.D,
             l.offsets.data(),
             division.threads(),
             l.forwards,
             l.batch,
             l.order.empty() ? nullptr : l.order.data(),
             l.resets.get()};
  std::copy(weights, weights + 2, f.weights);
  f.x = input(l.x), f.output = output.get();
  f.states.initial[0] = input(l.h0), f.states.last[0] = hn.get();
  if (c) f.states.initial[1] = input(l.c0), f.states.last[1] = cn.get();
  if (sequences) f.states.sequence[1] = sequence.get();
  launch(kernels.forward_workspace, kernels.forward, &f);  // without saving
  f.gates = gates.get(), f.statistics = statistics.get();
  f.states.carried = c ? carried.get() : nullptr, f.hidden = projected ? hidden.get() : nullptr;
  launch(kernels.forward_workspace, kernels.forward, &f);

  Buffer grad_gates(dtype, l.D * N * 2 * GH), grad_h(dtype, projected ? l.D * N * l.R : 0);
  Buffer grad_units(wide, l.D * (2 * G + info.all_param_rows()) * l.H);
  Buffer grad_h0(dtype, states * l.R), grad_c0(dtype, states * l.H);
  cpu::BackwardParams b{};
  b.shape = f.shape;
  std::copy(weights, weights + 2, b.weights);
  b.grad_output = input(l.grad_output), b.states.grad_last[0] = input(l.grad_hn);
  b.states.initial[0] = f.states.initial[0], b.states.initial[1] = f.states.initial[1];
  b.states.carried = f.states.carried;
  if (c) b.states.grad_last[1] = input(l.grad_cn);
  if (sequences) b.states.grad_sequence[1] = input(l.grad_cells);
  b.output = output.get(), b.gates = gates.get(), b.statistics = statistics.get();
  b.grad_gates = grad_gates.get(), b.grad_h = projected ? grad_h.get() : nullptr;
  launch(kernels.backward_workspace, kernels.backward, &b);  // of x alone
  b.grad_units = grad_units.get(), b.states.grad_initial[0] = grad_h0.get();
  if (c) b.states.grad_initial[1] = grad_c0.get();
  launch(kernels.backward_workspace, kernels.backward, &b);
  for (const Buffer& buffer : kept) failures += buffer.changed();
  Values all;
  for (const Buffer* buffer :
       {&gates, &carried, &statistics, &hidden, &grad_gates, &grad_h, &grad_units}) {
    for (double value : buffer->values()) {
      if (std::isnan(value)) ++failures;
      all.push_back(value);
    }
  }
  for (const Buffer* buffer : {&output, &hn, &cn, &sequence, &grad_h0, &grad_c0}) {
    for (double value : buffer->values()) all.push_back(value);
  }
  runs += 4;
  return all;
}

void check(const Layer& l, int cell, int type, const std::string& name) {
  Values expected;
  for (const Division& division : kDivisions) {
    if (division.teams > l.D) continue;
    const Values found = results(l, cell, kDtypes[type], division);
    if (expected.empty()) expected = found;
    for (size_t i = 0; i < found.size(); ++i) {
      const double error = std::fabs(found[i] - expected[i]);
      if ((std::isnan(found[i]) && std::isnan(expected[i])) ||
          error <= kTolerances[type] * std::fmax(1, std::fabs(expected[i])))
        continue;
      std::printf("FAILED %s: value %zu is %g, expected %g\n", name.c_str(), i, found[i],
                  expected[i]);
      ++failures;
      break;
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  short_workspace = argc > 2;
  if (argc < 2 || !cpu::set_isa(argv[1])) return 2;
  for (int cell = 0; cell < fastrnn::kCellCount; ++cell) {
    const fastrnn::CellInfo& info = fastrnn::kCells[cell];
    if (info.statistics == 0) continue;
    int index = 0;
    for (int type = 0; type < 4; ++type) {
      if (repeats(argv[1], kDtypes[type])) continue;
      for (const Shape& shape : kShapes) {
        for (const Schedule& schedule : kSchedules) {
          const int D = 1 + index % 2;
          const bool packed = index % 3 == 1,
                     projected = info.can_project && index % 5 == 1 && shape.H > 1;
          const bool biases = ++index % 4 != 0;
          const int like = info.states > 1 ? kLstm : kGru;  // of the same sizes
          check(make_layer(like, shape, D, packed, projected, biases, schedule), cell, type,
                std::string(info.mode) + " " + std::to_string(index) + schedule.name);
        }
      }
    }
  }
  std::printf("%d runs, %d failures\n", runs, failures);
  return runs == 0 || failures > 0;
}
