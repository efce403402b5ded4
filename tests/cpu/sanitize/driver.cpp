// Runs the CPU kernels, without torch, over small and odd shapes on every instruction set and
// division of the work, in memory that is exactly as large as it has to be, and compares them with
// plain loops. tests/cpu/test_sanitizers.py builds it under the sanitizers.
//
//   driver [--isa NAME] [--division TEAMS,BATCH_SLICES,UNIT_SLICES] [--short-workspace]
//
// --short-workspace gives the kernels a byte less than they asked for: AddressSanitizer has to see
// it.
#include <cstdio>
#include <map>
#include <memory>
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
// teams == 0: what plan.cpp chooses, with up to 3 threads.
constexpr Division kDivisions[] = {{0, 0, 0}, {1, 2, 1}, {1, 1, 2}, {1, 3, 1},
                                   {1, 1, 3}, {2, 1, 1}, {1, 2, 2}, {2, 1, 2}};

constexpr Schedule kSchedules[] = {{" order", true, false, false, true},
                                   {" resets", false, true, false, false},
                                   {" order resets reverse", true, true, true, true},
                                   {" resets reverse", false, true, true, true},
                                   {" order resets", true, true, false, false}};
constexpr int kScheduleCount = sizeof kSchedules / sizeof *kSchedules;

struct Format {
  Dtype dtype;
  const char* name;
  double tolerance;  // of the largest magnitude, at least 1
};
constexpr Format kFormats[] = {{Dtype::kFloat64, "float64", 1e-12},
                               {Dtype::kFloat32, "float32", 1e-5},
                               {Dtype::kBfloat16, "bfloat16", 4e-2},
                               {Dtype::kFloat16, "float16", 5e-3}};
constexpr const char* kCellNames[] = {"LSTM", "GRU", "RNN_TANH", "RNN_RELU"};

struct Options {
  std::string isa, division;
  bool short_workspace = false;
};

std::string text(const Division& d) {
  return std::to_string(d.teams) + "," + std::to_string(d.batch_slices) + "," +
         std::to_string(d.unit_slices);
}

class Run {
 public:
  Run(const Layer& layer, const Format& format, int threads, bool short_workspace, std::string name)
      : l(layer),
        format(format),
        wide(format.dtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32),
        short_workspace(short_workspace),
        name(std::move(name)),
        shape{l.cell,
              format.dtype,
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
              l.resets.get()} {
    for (int d = 0; d < l.D; ++d) {
      const Direction& w = l.weights[d];
      weights[d] = {input(w.w_ih),    input(w.w_hh),    optional(w.b_ih),
                    optional(w.b_hh), optional(w.w_hr), {}};
    }
  }

  // Forward with `save` or without; returns the output. What it saved stays for backward().
  Values forward(bool save, const Truth& truth) {
    const int64_t N = l.rows(), K = kSavedCount[l.cell];
    const bool lstm = l.cell == kLstm;
    output = Buffer(format.dtype, l.outer_rows() * l.D * l.R);
    Buffer hn(format.dtype, l.D * l.batch * l.R), cn(format.dtype, lstm ? l.D * l.batch * l.H : 0);
    Buffer sequence(format.dtype, l.grad_cells.empty() ? 0 : l.outer_rows() * l.D * l.H);
    gates = Buffer(format.dtype, l.D * N * K * l.H);
    cells = Buffer(wide, lstm ? l.D * N * l.H : 0);
    Buffer hidden(format.dtype, l.R != l.H ? l.D * N * l.H : 0);
    cpu::ForwardParams p{};
    p.shape = shape;
    copy_weights(&p);
    p.x = input(l.x), p.output = output.get();
    p.states.initial[0] = input(l.h0), p.states.initial[1] = lstm ? input(l.c0) : nullptr;
    p.states.last[0] = hn.get(), p.states.last[1] = lstm ? cn.get() : nullptr;
    p.states.sequence[1] = l.grad_cells.empty() ? nullptr : sequence.get();
    if (save) {
      p.gates = K ? gates.get() : nullptr;
      p.states.carried = lstm ? cells.get() : nullptr;
      p.hidden = l.R != l.H ? hidden.get() : nullptr;
    }
    launch(cpu::kernels(p.shape.dtype, 1).forward_workspace, cpu::kernels(p.shape.dtype, 1).forward,
           &p);
    compare("output", output, truth.output);
    compare("hn", hn, truth.hn);
    if (lstm) compare("cn", cn, truth.cn);
    if (!l.grad_cells.empty()) compare("c sequence", sequence, truth.cell_sequence);
    if (save) written("gates", gates), written("cells", cells), written("hidden", hidden);
    output.freeze(), gates.freeze(), cells.freeze();
    return output.values();
  }

  // `all` gradients, or only those of the gates.
  void backward(bool all, const Truth& truth) {
    const int64_t N = l.rows(), GH = kGateCount[l.cell] * l.H, E = kGradCopies[l.cell];
    const bool lstm = l.cell == kLstm;
    Buffer grad_gates(format.dtype, l.D * N * E * GH), grad_bias(wide, l.D * E * GH);
    Buffer grad_h0(format.dtype, l.D * l.batch * l.R),
        grad_c0(format.dtype, lstm ? l.D * l.batch * l.H : 0);
    Buffer grad_h(format.dtype, l.R != l.H ? l.D * N * l.R : 0);
    cpu::BackwardParams p{};
    p.shape = shape;
    copy_weights(&p);
    p.grad_output = input(l.grad_output), p.states.grad_last[0] = input(l.grad_hn);
    p.states.grad_last[1] = lstm ? input(l.grad_cn) : nullptr;
    p.states.grad_sequence[1] = optional(l.grad_cells);
    p.states.initial[0] = input(l.h0), p.states.initial[1] = lstm ? input(l.c0) : nullptr;
    p.output = output.get();
    p.gates = kSavedCount[l.cell] ? gates.get() : nullptr;
    p.states.carried = lstm ? cells.get() : nullptr;
    p.grad_gates = grad_gates.get();
    p.grad_h = l.R != l.H ? grad_h.get() : nullptr;
    if (all)
      p.grad_units = grad_bias.get(), p.states.grad_initial[0] = grad_h0.get(),
      p.states.grad_initial[1] = lstm ? grad_c0.get() : nullptr;
    launch(cpu::kernels(p.shape.dtype, 1).backward_workspace,
           cpu::kernels(p.shape.dtype, 1).backward, &p);
    compare("grad_gates", grad_gates, truth.grad_gates);
    if (l.R != l.H) compare("grad_h", grad_h, truth.grad_h);
    if (all) {
      compare("grad_bias", grad_bias, truth.grad_bias);
      compare("grad_h0", grad_h0, truth.grad_h0);
      if (lstm) compare("grad_c0", grad_c0, truth.grad_c0);
    }
    if (output.changed() || gates.changed() || cells.changed())
      fail("backward wrote to what forward saved");
  }

  static int failures;

 private:
  const void* input(const Values& values) {
    // Every second input starts where only its element type is aligned.
    inputs.push_back(std::make_unique<Buffer>(format.dtype, values, int(inputs.size() % 2)));
    return inputs.back()->get();
  }
  const void* optional(const Values& values) { return values.empty() ? nullptr : input(values); }

  template <class Params>
  void copy_weights(Params* p) const {
    for (int d = 0; d < l.D; ++d) p->weights[d] = weights[d];
  }

  template <class Params>
  void launch(size_t (*measure)(const Params&), void (*kernel)(const Params&), Params* p) {
    const size_t bytes = measure(*p) - (short_workspace ? 1 : 0);
    if (posix_memalign(&p->workspace, 64, bytes) != 0) std::abort();
    std::memset(p->workspace, 0xff, bytes);
    kernel(*p);
    std::free(p->workspace);
    for (const auto& buffer : inputs) {
      if (buffer->changed()) fail("an input was written");
    }
  }

  void written(const char* what, const Buffer& buffer) {
    for (double value : buffer.values()) {
      if (std::isnan(value)) return fail(std::string(what) + ": not written everywhere");
    }
  }

  void compare(const char* what, const Buffer& buffer, const Values& truth) {
    const Values actual = buffer.values();
    if (actual.size() != truth.size())
      return fail(std::string(what) + ": wrong size in the driver");
    double scale = 1;
    for (double value : truth) scale = std::fmax(scale, std::fabs(value));
    for (size_t i = 0; i < truth.size(); ++i) {
      if (std::isnan(truth[i]) && std::isnan(actual[i])) continue;
      // Not ">": NaN must fail.
      if (!(std::fabs(actual[i] - truth[i]) <= format.tolerance * scale)) {
        return fail(std::string(what) + "[" + std::to_string(i) +
                    "] = " + std::to_string(actual[i]) + ", expected " + std::to_string(truth[i]));
      }
    }
  }

  void fail(const std::string& message) {
    std::printf("FAILED %s: %s\n", name.c_str(), message.c_str());
    ++failures;
  }

  const Layer& l;
  const Format& format;
  const Dtype wide;
  const bool short_workspace;
  const std::string name;
  const cpu::LayerShape shape;
  cpu::DirectionWeights weights[2]{};
  std::vector<std::unique_ptr<Buffer>> inputs;
  Buffer output, gates, cells;
};
int Run::failures = 0;

struct Counts {
  int runs = 0;
  std::map<std::string, int> by_isa, uses_of_division;
};

// One layer on every instruction set and every fourth division, or on the one that was asked for;
// forward without and with saving, and backward. 7 has no factor in common with the loops of main.
void check(const Layer& l, const Format& format, const std::string& name, const Options& options,
           Counts* counts) {
  static int layers = 0;
  const int first = ++layers % 7;
  Truth truth;
  naive_forward(l, &truth);
  bool have_gradients = false;
  for (const std::string& isa : cpu::supported_isas()) {
    if ((!options.isa.empty() && options.isa != isa) || repeats(isa, format.dtype)) continue;
    cpu::set_isa(isa);
    for (const Division& division : kDivisions) {
      const bool asked = options.division.empty() ? (&division - kDivisions + first) % 4 == 0
                                                  : options.division == text(division);
      if (division.teams > l.D || !asked) continue;
      forced = division, forced_uses = 0;
      Run run(l, format, division.teams ? division.threads() : 3, options.short_workspace,
              isa + " " + name + " division " + text(division));
      run.forward(false, truth);
      const Values output = run.forward(true, truth);
      // Only relu looks at the output, and its sign is the same everywhere but at the kink.
      if (!have_gradients || l.cell == kRelu)
        naive_backward(l, output, &truth), have_gradients = true;
      run.backward(false, truth);
      run.backward(true, truth);
      counts->runs += 4;
      counts->by_isa[isa] += 4;
      counts->uses_of_division[text(division)] += division.teams ? forced_uses : 1;
    }
  }
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--short-workspace") {
      options.short_workspace = true;
    } else if (i + 1 < argc && name == "--isa") {
      options.isa = argv[++i];
    } else if (i + 1 < argc && name == "--division") {
      options.division = argv[++i];
    } else {
      std::fprintf(stderr, "driver: unknown argument %s\n", argv[i]);
      std::exit(2);
    }
  }
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  Counts counts;
  int index = 0;
  for (int cell = kLstm; cell <= kRelu; ++cell) {
    for (const Format& format : kFormats) {
      for (const Shape& shape : kShapes) {
        for (int variant = 0; variant < (cell == kLstm ? 8 : 4); ++variant) {
          const int D = 1 + variant % 2;
          const bool packed = variant & 2, projected = variant & 4, biases = ++index % 3 != 0;
          if (projected && shape.H == 1) continue;  // P must be less than H
          const std::string name =
              std::string(kCellNames[cell]) + " " + format.name + " T=" + std::to_string(shape.T) +
              " B=" + std::to_string(shape.B) + " I=" + std::to_string(shape.I) +
              " H=" + std::to_string(shape.H) + " D=" + std::to_string(D) +
              (packed ? " packed" : "") + (projected ? " projected" : "");
          const auto check_with = [&](const Schedule& schedule) {
            check(make_layer(cell, shape, D, packed, projected, biases, schedule), format,
                  name + schedule.name, options, &counts);
          };
          check_with({});
          // Every case would take twice the time; 11 has no factor in common with the loops.
          if (index % 11 < kScheduleCount) check_with(kSchedules[index % 11]);
        }
      }
    }
  }
  int products = 0;
  for (const std::string& isa : cpu::supported_isas()) {
    if (!options.isa.empty() && options.isa != isa) continue;
    std::mt19937 random(7);
    const auto draw_some = [&](int64_t count) { return draw(&random, count, 64); };
    const auto check = [&](cpu::ProductKernel kernel, Dtype dtype) {
      if (repeats(isa, dtype)) return;
      Run::failures += check_products(isa, kernel, dtype, draw_some, &products);
    };
    cpu::set_isa(isa);
    check(cpu::kernels(Dtype::kFloat32).product_float32, Dtype::kFloat32);
    check(cpu::kernels(Dtype::kBfloat16).product_bfloat16, Dtype::kBfloat16);
  }
  std::printf("%d products\n", products);
  for (const auto& [isa, runs] : counts.by_isa) std::printf("isa %s: %d runs\n", isa.c_str(), runs);
  for (const auto& [division, uses] : counts.uses_of_division) {
    std::printf("division %s: taken %d times\n", division.c_str(), uses);
    if (uses == 0) ++Run::failures;
  }
  std::printf("%d runs, %d failures\n", counts.runs, Run::failures);
  return counts.runs == 0 || Run::failures > 0;
}
