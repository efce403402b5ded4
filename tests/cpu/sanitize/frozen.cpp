// Runs the kernels of frozen stacks on random shapes and threads, for a sanitizer, and compares
// with the plain kernels on one thread: frozen <isa> <runs> [bytes]. Every array has its exact size
// and the workspace, short of `bytes`, begins as NaN.
#include <cstdio>
#include <string>

#include "../../../csrc/cpu/dispatch.h"
#include "../../../csrc/cpu/isa/frozen_levels.h"
#include "buffer.h"
#include "forced_plan.h"
#include "layers.h"

namespace {

using namespace fastrnn::cpu;

std::mt19937 generator(7);
int64_t below(int64_t end) { return int64_t(generator() % uint64_t(end)); }
bool perhaps() { return below(2) == 1; }
int64_t among(const std::vector<int64_t>& values) {
  return values[size_t(below(int64_t(values.size())))];
}

// What a kernel's errors may be, beside 1 and the value. The other types round rows to 8 bits.
double tolerance(FrozenType type) { return type == FrozenType::kFloat32 ? 1e-4 : 0.06; }

// The layers' weights are multiples of 1/64, less than 1/2: exact in every type.
std::vector<char> stored(FrozenType type, const Values& weights) {
  std::vector<char> bytes(weights.size() * 4);
  for (size_t i = 0; i < weights.size(); ++i) {
    if (type == FrozenType::kInt8) {
      bytes[i] = char(weights[i] * 64);
    } else {
      const bool wide = type == FrozenType::kFloat32;
      encode(wide ? Dtype::kFloat32 : Dtype::kBfloat16, weights[i], &bytes[i * (wide ? 4 : 2)]);
    }
  }
  return bytes;
}

struct Stack {
  FrozenShape shape;
  std::vector<Layer> layers;
  Values h0, c0;             // of all
  std::vector<bool> states;  // which of those belong to rows that exist
  bool dense, batch_first;   // how the caller's rows lie
};

template <class Some>
void append(Some* all, const Some& some) {
  all->insert(all->end(), some.begin(), some.end());
}

Stack draw_stack() {
  Stack stack{};
  FrozenShape& s = stack.shape;
  s.type = FrozenType(below(3));
  s.cell = int(below(s.type == FrozenType::kInt8 ? 2 : 3));
  s.layers = 1 + int(below(3));
  s.D = 1 + int(below(2));
  s.I = among({1, 2, 3, 5, 16, 17, 33, 50});
  s.H = among({1, 2, 5, 15, 16, 17, 31, 48, 70});
  Shape size{1 + below(7), among({1, 2, 3, 7, 13, 18}), s.I, s.H};
  const bool projected =
      fastrnn::kCells[s.cell].can_project && s.type != FrozenType::kInt8 && s.H > 1 && perhaps();
  const bool packed = perhaps(), biases = perhaps();
  Schedule schedule;
  schedule.order = perhaps();
  for (int k = 0; k < s.layers; ++k) {
    stack.layers.push_back(make_layer(s.cell, size, s.D, packed, projected, biases, schedule));
    Layer& l = stack.layers.back();
    l.order = stack.layers.front().order;
    append(&stack.h0, l.h0), append(&stack.c0, l.c0), append(&stack.states, l.existing_states());
    s.R = l.R;
    size.I = s.D * s.R;
  }
  const Layer& first = stack.layers.front();
  const bool whole = first.rows() == first.T * first.batch;
  stack.dense = first.order.empty() && (!whole || perhaps());
  stack.batch_first = !stack.dense && perhaps();
  return stack;
}

// On a cache line, as all that the kernels get; the end is that of the allocation.
struct Block {
  explicit Block(size_t bytes) {
    if (posix_memalign(&memory, 64, bytes + !bytes) != 0) std::abort();
    std::memset(memory, 0xff, bytes);
  }
  Block(const Block&) = delete;
  ~Block() { std::free(memory); }
  char* get() const { return (char*)memory; }

  void* memory = nullptr;
};

void pack(const Stack& stack, char* packed) {
  const FrozenShape& s = stack.shape;
  write_header(s, packed);
  for (int i = 0; i < s.layers * s.D; ++i) {
    const FrozenDirection to = frozen_direction(s, i / s.D, i % s.D);
    const Direction& from = stack.layers[size_t(i / s.D)].weights[i % s.D];
    const auto put = [&](const FrozenMatrix& m, const Values& weights, const Values& biases) {
      if (m.units == 0) return;
      const std::vector<float> bias(biases.begin(), biases.end());
      const std::vector<float> scales(size_t(m.gates * m.units), 1.0f / 64);
      pack_frozen(
          s.type, m,
          {stored(s.type, weights).data(), bias.empty() ? nullptr : bias.data(), scales.data()},
          packed);
    };
    put(to.w_ih, from.w_ih, from.b_ih);
    put(to.w_hh, from.w_hh, from.b_hh);
    put(to.w_hr, from.w_hr, {});
  }
}

// Values of the caller's rows (T, batch) as (batch, T), or back.
Values exchanged(const Values& rows, int64_t outer, int64_t inner) {
  Values result(rows.size());
  const int64_t width = int64_t(rows.size()) / (outer * inner);
  for (int64_t i = 0; i < outer; ++i)
    for (int64_t k = 0; k < inner; ++k)
      std::copy_n(&rows[size_t((i * inner + k) * width)], width,
                  &result[size_t((k * outer + i) * width)]);
  return result;
}

struct Results {
  Values output, h, c;
};

// With the instruction set in use, on `threads` of them.
Results results_of(const Stack& stack, const Division& threads, size_t missing) {
  const FrozenShape& s = stack.shape;
  const Layer &first = stack.layers.front(), &last = stack.layers.back();
  const int64_t T = first.T, batch = first.batch, width = s.D * s.R;
  const Block packed(frozen_bytes(s));
  pack(stack, packed.get());
  const Buffer x(Dtype::kFloat32, stack.batch_first ? exchanged(first.x, T, batch) : first.x);
  const Buffer output(Dtype::kFloat32, last.outer_rows() * width);
  const Buffer h(Dtype::kFloat32, stack.h0), c(Dtype::kFloat32, stack.c0);

  FrozenCall call{};
  call.shape = s;
  call.packed = packed.get();
  const auto rows = [&](auto* data, int64_t values) {
    using Value = std::remove_reference_t<decltype(*data)>;
    const int64_t step = stack.dense ? 0 : stack.batch_first ? values : batch * values;
    return FrozenRows<Value>{data, step, stack.batch_first ? T * values : values, stack.dense};
  };
  call.x = rows((const float*)x.get(), s.I);
  call.output = rows((float*)output.get(), width);
  call.states[0] = (float*)h.get();
  call.states[1] = (float*)c.get();
  call.T = T;
  call.B = first.B;
  call.batch = batch;
  call.offsets = first.offsets.data();
  call.order = first.order.empty() ? nullptr : first.order.data();
  call.threads = 4;
  forced = threads;
  const FrozenKernels kernels = frozen_kernels(s.type);
  const size_t bytes = kernels.workspace(call);
  const Block workspace(bytes - std::min(bytes, missing));
  call.workspace = workspace.get();
  kernels.run(call);
  if (x.changed()) std::abort();
  const Values values = output.values();
  return {stack.batch_first ? exchanged(values, batch, T) : values, h.values(), c.values()};
}

// Rows that do not exist hold what they held before.
bool agree(const char* what, const Values& actual, const Values& truth, const Values& before,
           const std::vector<bool>& exist, double tolerance) {
  for (size_t i = 0; i < truth.size(); ++i) {
    const bool written = exists(exist, i, truth.size());
    const double expected = written ? truth[i] : before[i];
    const bool both_nan = std::isnan(actual[i]) && std::isnan(expected);
    if (written ? std::fabs(actual[i] - expected) <= tolerance * (1 + std::fabs(expected))
                : actual[i] == expected || both_nan)
      continue;
    std::printf("%s[%zu] is %g, expected %g\n", what, i, actual[i], expected);
    return false;
  }
  return true;
}

bool run(const std::string& isa, DotProducts dot_products, size_t missing) {
  const Stack stack = draw_stack();
  const FrozenShape& s = stack.shape;
  set_isa("plain");
  const Results truth = results_of(stack, {1, 1, 1}, missing);
  set_isa(isa);
  use_dot_products(dot_products);
  forced_uses = 0;
  const Division threads{1 + int(below(2)), 1 + int(below(2)), 1 + int(below(2))};
  const Results found = results_of(stack, threads, missing);

  const double error = tolerance(s.type);
  const Layer& last = stack.layers.back();
  const Values none(found.output.size(), NAN);
  const bool right =
      agree("output", found.output, truth.output, none, last.existing_rows(), error) &&
      agree("h", found.h, truth.h, stack.h0, stack.states, error) &&
      agree("c", found.c, truth.c, stack.c0, stack.states, error);
  if (!right)
    std::printf("cell %d type %d layers %d D %d T %ld B %ld I %ld H %ld R %ld\n", s.cell,
                int(s.type), s.layers, s.D, last.T, last.B, s.I, s.H, s.R);
  return right;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3 || !set_isa(arguments[1])) {
    std::fprintf(stderr, "frozen: expected an instruction set and a number of runs\n");
    return 2;
  }
  const int runs = std::atoi(arguments[2]);
  const size_t missing = count > 3 ? size_t(std::atoi(arguments[3])) : 0;
  int failures = 0, divided = 0;
  for (int i = 0; i < runs; ++i) {
    failures += !run(arguments[1], i % 2 ? DotProducts::kAlways : DotProducts::kNever, missing);
    divided += forced_uses;
  }
  if (divided == 0) std::printf("no work was divided\n");
  std::printf("%d runs, %d failures\n", runs, failures);
  return failures > 0 || divided == 0;
}
