// Runs the CPU kernels, without torch, over small and odd shapes on every instruction set and
// division of the work, in memory that is exactly as large as it has to be and begins as NaN.
// Results must be those of the plain kernels on one thread, which test_cpu_schedule.py judges.
// tests/cpu/test_sanitizers.py builds it under the sanitizers.
//
//   driver [ISA [TEAMS,BATCH_SLICES,UNIT_SLICES [BYTES]]]
//
// The workspace is so many BYTES short: AddressSanitizer has to see it.
#include <cstdio>
#include <map>
#include <string>

#include "../../../csrc/cpu/dispatch.h"
#include "buffer.h"
#include "forced_plan.h"
#include "layers.h"
#include "products.h"

namespace cpu = fastrnn::cpu;

namespace {

constexpr Shape kShapes[] = {{1, 1, 1, 1},   {1, 3, 17, 33}, {3, 1, 33, 3},
                             {2, 5, 3, 17},  {4, 3, 1, 1},   {2, 17, 1, 33},
                             {3, 4, 17, 20}, {2, 0, 3, 3},   {3, 1, 5, 65}};
constexpr Division kAlone{1, 1, 1};
// teams == 0: what plan.cpp chooses, with up to 3 threads.
constexpr Division kDivisions[] = {{0, 0, 0}, {1, 2, 1}, {1, 1, 2}, {1, 3, 1}, {1, 1, 3},
                                   {2, 1, 1}, {1, 2, 2}, {2, 1, 2}, {2, 2, 1}};

constexpr Schedule kSchedules[] = {{" order", true, false, false, true},
                                   {" resets", false, true, false, false},
                                   {" order resets reverse", true, true, true, true},
                                   {" resets reverse", false, true, true, true},
                                   {" order resets", true, true, false, false}};
constexpr int kScheduleCount = sizeof kSchedules / sizeof *kSchedules;

struct Format {
  Dtype dtype;
  const char* name;
  double tolerance;  // of an array's largest magnitude, at least 1
};
constexpr Format kFormats[] = {{Dtype::kFloat64, "float64", 1e-12},
                               {Dtype::kFloat32, "float32", 1e-5},
                               {Dtype::kBfloat16, "bfloat16", 4e-2},
                               {Dtype::kFloat16, "float16", 5e-3}};

std::string asked_isa, asked_division;
size_t missing_bytes = 0;
std::string running;  // the case, for a message
int failures = 0;
std::map<std::string, int> runs_of_isa, uses_of_division;

void fail(const std::string& message) {
  std::printf("FAILED %s: %s\n", running.c_str(), message.c_str());
  ++failures;
}

std::string text(const Division& d) {
  return std::to_string(d.teams) + "," + std::to_string(d.batch_slices) + "," +
         std::to_string(d.unit_slices);
}

// Whether a level was asked for and has kernels for a type that the one before it does not have. It
// is in use then.
bool serves(const std::string& isa, Dtype dtype) {
  void (*before)(const cpu::ForwardParams&) = nullptr;  // as where a build leaves out a level
  for (const std::string& level : cpu::supported_isas()) {
    cpu::set_isa(level);
    const auto kernel = cpu::kernels(dtype, 1).forward;
    if (level == isa) return kernel && kernel != before && (asked_isa.empty() || isa == asked_isa);
    before = kernel;
  }
  return false;
}

struct Array {
  const char* name;
  Values values;
};
using Results = std::vector<Array>;

// What a layer gives: forward without and with saving, backward of the gates alone and of all.
Results run(const Layer& l, Dtype dtype, int threads) {
  const fastrnn::CellInfo& info = l.info();
  const cpu::Kernels& kernels = cpu::kernels(dtype, 1);
  const Dtype wide = dtype == Dtype::kFloat64 ? dtype : Dtype::kFloat32;
  const bool projected = l.R != l.H, c = info.states > 1, sequences = !l.grad_cells.empty();
  const int64_t rows = l.D * l.rows(), outer_rows = l.D * l.outer_rows(), states = l.D * l.batch;
  const int64_t gate_grads = (info.shared_gate_grad ? 1 : 2) * info.gates;

  std::vector<Buffer> inputs;
  const auto keep = [&](Buffer buffer) {
    buffer.freeze();
    inputs.push_back(std::move(buffer));
    return inputs.back().get();
  };
  // Every second input starts where only its element type is aligned.
  const auto input = [&](const Values& values) {
    return keep(Buffer(dtype, values, int(inputs.size() % 2)));
  };
  const auto launch = [&](auto measure, auto kernel, auto& params) {
    const size_t bytes = measure(params) - missing_bytes;
    if (posix_memalign(&params.workspace, 64, bytes) != 0) std::abort();
    std::memset(params.workspace, 0xff, bytes);
    kernel(params);
    std::free(params.workspace);
    for (const Buffer& buffer : inputs)
      if (buffer.changed()) fail("an input was written");
  };
  Results results;
  const std::vector<bool> all{true}, of_rows = l.existing_rows(), of_states = l.existing_states();
  const auto take = [&](const char* name, const Buffer& buffer, const std::vector<bool>& exist) {
    const Values values = buffer.values();
    results.push_back({name, values});
    for (size_t i = 0; i < values.size(); ++i) {
      if (std::isnan(values[i]) != exists(exist, i, values.size())) continue;
      return fail(std::string(name) + "[" + std::to_string(i) + "] = " + std::to_string(values[i]));
    }
  };

  Buffer output(dtype, outer_rows * l.R), cells(dtype, sequences ? outer_rows * l.H : 0);
  Buffer hn(dtype, states * l.R), cn(dtype, c ? states * l.H : 0);
  Buffer gates(dtype, rows * info.saved * l.H), carried(wide, c ? rows * l.H : 0);
  Buffer statistics(wide, rows * info.statistics), hidden(dtype, projected ? rows * l.H : 0);
  cpu::ForwardParams f{};
  f.shape = {l.cell,
             dtype,
             l.T,
             l.B,
             l.I,
             l.H,
             l.R,
             l.D,
             l.offsets.data(),
             threads,
             l.forwards,
             l.batch,
             l.order.empty() ? nullptr : l.order.data(),
             l.resets.get()};
  for (int d = 0; d < l.D; ++d) {
    const Direction& w = l.weights[d];
    f.weights[d] = {input(w.w_ih), input(w.w_hh), input(w.b_ih), input(w.b_hh), input(w.w_hr), {}};
    for (int k = 0; k < info.params; ++k) f.weights[d].params[k] = input(w.params[k]);
  }
  f.x = input(l.x), f.output = output.get();
  f.states.initial[0] = input(l.h0), f.states.initial[1] = input(l.c0);
  f.states.last[0] = hn.get(), f.states.last[1] = cn.get(), f.states.sequence[1] = cells.get();
  for (const bool save : {false, true}) {
    for (Buffer* buffer : {&output, &cells, &hn, &cn}) buffer->clear();
    if (save) {
      f.gates = gates.get(), f.states.carried = carried.get();
      f.statistics = statistics.get(), f.hidden = hidden.get();
    }
    launch(kernels.forward_workspace, kernels.forward, f);
    take("output", output, of_rows), take("c sequence", cells, of_rows);
    take("hn", hn, of_states), take("cn", cn, of_states);
  }
  take("gates", gates, all), take("carried", carried, all);
  take("statistics", statistics, all), take("hidden", hidden, all);

  Buffer grad_gates(dtype, rows * gate_grads * l.H), grad_h(dtype, projected ? rows * l.R : 0);
  Buffer grad_units(wide, l.D * (gate_grads + info.all_param_rows()) * l.H);
  Buffer grad_h0(dtype, states * l.R), grad_c0(dtype, c ? states * l.H : 0);
  cpu::BackwardParams b{};
  b.shape = f.shape;
  std::copy_n(f.weights, l.D, b.weights);
  b.grad_output = input(l.grad_output), b.states.grad_sequence[1] = input(l.grad_cells);
  b.states.grad_last[0] = input(l.grad_hn), b.states.grad_last[1] = input(l.grad_cn);
  b.states.initial[0] = f.states.initial[0], b.states.initial[1] = f.states.initial[1];
  b.output = keep(std::move(output)), b.gates = keep(std::move(gates));
  b.states.carried = keep(std::move(carried)), b.statistics = keep(std::move(statistics));
  b.grad_gates = grad_gates.get(), b.grad_h = grad_h.get();
  for (const bool wanted : {false, true}) {
    for (Buffer* buffer : {&grad_gates, &grad_h}) buffer->clear();
    if (wanted) {
      b.grad_units = grad_units.get();
      b.states.grad_initial[0] = grad_h0.get(), b.states.grad_initial[1] = grad_c0.get();
    }
    launch(kernels.backward_workspace, kernels.backward, b);
    take("grad_gates", grad_gates, all), take("grad_h", grad_h, all);
  }
  take("grad_units", grad_units, all);
  take("grad_h0", grad_h0, of_states), take("grad_c0", grad_c0, of_states);
  return results;
}

void compare(const Results& found, const Results& expected, double tolerance) {
  for (size_t k = 0; k < found.size(); ++k) {
    const Values &values = found[k].values, &truth = expected[k].values;
    double scale = 1;
    for (double value : truth) scale = std::fmax(scale, std::fabs(value));
    for (size_t i = 0; i < values.size(); ++i) {
      if (std::isnan(values[i]) && std::isnan(truth[i])) continue;  // run() knows where
      // Not ">": NaN must fail.
      if (std::fabs(values[i] - truth[i]) <= tolerance * scale) continue;
      return fail(std::string(found[k].name) + "[" + std::to_string(i) +
                  "] = " + std::to_string(values[i]) + ", expected " + std::to_string(truth[i]));
    }
  }
}

// One layer on every instruction set and every fourth division, or on the one that was asked for.
// 7 has no factor in common with the loops of check_layers().
void check(const Layer& l, const Format& format, const std::string& name) {
  static int layers = 0;
  const int first = ++layers % 7;
  const auto run_on = [&](const std::string& isa, const Division& division) {
    cpu::set_isa(isa);
    forced = division, forced_uses = 0;
    running = isa + " " + name + " division " + text(division);
    return run(l, format.dtype, division.teams ? division.threads() : 3);
  };
  Results expected;
  for (const std::string& isa : cpu::supported_isas()) {
    if (!serves(isa, format.dtype)) continue;
    for (const Division& division : kDivisions) {
      const bool asked = asked_division.empty() ? (&division - kDivisions + first) % 4 == 0
                                                : asked_division == text(division);
      if (division.teams > l.D || !asked) continue;
      if (expected.empty()) expected = run_on("plain", kAlone);
      const Results found = run_on(isa, division);
      // The norm of a narrow row multiplies roundings.
      if (l.info().statistics == 0 || l.H > 16) compare(found, expected, format.tolerance);
      runs_of_isa[isa] += 4;
      uses_of_division[text(division)] += division.teams ? forced_uses : 1;
    }
  }
}

void check_layers() {
  int index = 0;
  for (int cell = 0; cell < fastrnn::kCellCount; ++cell) {
    const fastrnn::CellInfo& info = fastrnn::kCells[cell];
    for (const Format& format : kFormats) {
      for (const Shape& shape : kShapes) {
        for (int variant = 0; variant < (info.can_project ? 8 : 4); ++variant) {
          const int D = 1 + variant % 2;
          const bool packed = variant & 2, projected = variant & 4, biases = ++index % 3 != 0;
          if (projected && shape.H == 1) continue;  // P must be less than H
          const std::string name =
              std::string(info.mode) + " " + format.name + " T=" + std::to_string(shape.T) +
              " B=" + std::to_string(shape.B) + " I=" + std::to_string(shape.I) +
              " H=" + std::to_string(shape.H) + " D=" + std::to_string(D) +
              (packed ? " packed" : "") + (projected ? " projected" : "");
          const auto check_with = [&](const Schedule& schedule) {
            check(make_layer(cell, shape, D, packed, projected, biases, schedule), format,
                  name + schedule.name);
          };
          check_with({});
          // Every case would take twice the time; 11 has no factor in common with the loops.
          if (index % 11 < kScheduleCount) check_with(kSchedules[index % 11]);
        }
      }
    }
  }
}

// Returns how many there were.
int check_all_products() {
  int products = 0;
  for (const std::string& isa : cpu::supported_isas()) {
    std::mt19937 random(7);
    const auto draw_some = [&](int64_t count) { return draw(&random, count, 64); };
    for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBfloat16}) {
      if (!serves(isa, dtype)) continue;
      const cpu::Kernels& of = cpu::kernels(dtype, 1);
      const auto kernel = dtype == Dtype::kFloat32 ? of.product_float32 : of.product_bfloat16;
      failures += check_products(isa, kernel, dtype, draw_some, &products);
    }
  }
  return products;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) asked_isa = argv[1];
  if (argc > 2) asked_division = argv[2];
  if (argc > 3) missing_bytes = size_t(std::atoi(argv[3]));
  check_layers();
  std::printf("%d products\n", check_all_products());
  for (const auto& [division, uses] : uses_of_division) {
    std::printf("division %s: taken %d times\n", division.c_str(), uses);
    if (uses == 0) ++failures;
  }
  for (const auto& [isa, runs] : runs_of_isa) std::printf("%s: %d runs\n", isa.c_str(), runs);
  std::printf("%d failures\n", failures);
  return runs_of_isa.empty() || failures > 0;
}
