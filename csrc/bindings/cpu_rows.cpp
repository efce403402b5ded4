#include "cpu_rows.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>

#include "cpu_memory.h"

#include "../cpu/parallel.h"

namespace fastrnn {

using at::Tensor;

namespace {

// Calls f(t), which writes so many bytes, for every step, on several threads where it pays.
template <class F>
void for_steps(int64_t steps, int64_t bytes, const F& f) {
  constexpr int64_t kWorthAThread = 1 << 17;
  const int64_t grain = kWorthAThread / std::max<int64_t>(bytes, 1) + 1;
  const auto some = [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) f(t);
  };
  if (cpu::usable_threads(at::get_num_threads()) == 1) {
    some(0, steps);
  } else {
    at::parallel_for(0, steps, grain, some);
  }
}

}  // namespace

LayerRows::LayerRows(const LayerArgs& args)
    : args(args), T(args.T), B(args.B), N(args.N), offsets(args.offsets) {
  TORCH_CHECK(args.x.device().is_cpu(), args.function, ": x must be on the CPU, got ",
              args.x.device());
  if (args.lengths.defined()) set_lengths(args.lengths.const_data_ptr<int64_t>());
  if (!args.resets.defined()) return;
  const bool* const given = args.resets.const_data_ptr<bool>();
  const bool* const end = given + args.resets.numel();
  if (std::find(given, end, true) == end) return;
  resets = at::empty({N}, args.resets.options());
  bool* const to = resets.mutable_data_ptr<bool>();
  for_rows(1, [&](int64_t t, int64_t b) { to[offsets[t] + b] = given[batch_row(b) * args.T + t]; });
}

void LayerRows::set_lengths(const int64_t* lengths) {
  SortedRows sorted = sort_rows(args.function, lengths, args.B, args.T);
  if (sorted.offsets.back() == args.T * args.B) return;
  order = std::move(sorted.order);
  offsets = std::move(sorted.offsets);
  T = int64_t(offsets.size()) - 1;
  B = offsets[1];
  N = offsets.back();
}

template <class F>
void LayerRows::for_rows(int64_t bytes, const F& f) const {
  for_steps(T, bytes * B, [&](int64_t t) {
    for (int64_t b = 0; b < offsets[t + 1] - offsets[t]; ++b) f(t, b);
  });
}

Tensor LayerRows::gather(const Tensor& tensor) const {
  const int64_t width = tensor.size(-1);
  if (order.empty()) return tensor.view({N, width});
  const Tensor result = empty_block({N, width}, tensor.options());
  const int64_t bytes = width * int64_t(tensor.element_size());
  const char* const from = (const char*)tensor.const_data_ptr();
  char* const to = (char*)result.mutable_data_ptr();
  for_rows(bytes, [&](int64_t t, int64_t b) {
    std::memcpy(to + (offsets[t] + b) * bytes, from + outer(t, b) * bytes, bytes);
  });
  return result;
}

Tensor LayerRows::scatter(const Tensor& rows) const {
  const int64_t width = rows.size(-1);
  if (order.empty()) return rows.view(args.rows_shape(width));
  const Tensor result = empty(width);
  const int64_t bytes = width * int64_t(rows.element_size());
  const char* const from = (const char*)rows.const_data_ptr();
  char* const to = (char*)result.mutable_data_ptr();
  for_rows(bytes, [&](int64_t t, int64_t b) {
    std::memcpy(to + outer(t, b) * bytes, from + (offsets[t] + b) * bytes, bytes);
  });
  return result;
}

Tensor LayerRows::empty(int64_t width) const {
  const Tensor result = empty_block(args.rows_shape(width), args.options);
  if (order.empty()) return result;
  const int64_t bytes = width * int64_t(result.element_size());
  char* const to = (char*)result.mutable_data_ptr();
  for_steps(args.T, bytes * args.B, [&](int64_t t) {
    const int64_t alive = t < T ? offsets[t + 1] - offsets[t] : 0;
    for (int64_t b = alive; b < args.B; ++b) std::memset(to + outer(t, b) * bytes, 0, bytes);
  });
  return result;
}

std::vector<Tensor> LayerRows::empty_states(const std::vector<Tensor>& from) const {
  std::vector<Tensor> result;
  for (const Tensor& state : from) {
    result.push_back(B < args.B ? state.clone() : at::empty(state.sizes(), args.options));
  }
  return result;
}

Tensor LayerRows::operands(const Tensor& output, int64_t d) const {
  const Tensor result = empty_block({N, args.R}, args.options);
  const int64_t bytes = args.R * int64_t(output.element_size());
  const char* const from = (const char*)output.const_data_ptr() + d * bytes;
  const char* const initial = (const char*)args.hx[0].const_data_ptr() + d * args.B * bytes;
  char* const to = (char*)result.mutable_data_ptr();
  const bool* const reset = resets.defined() ? resets.const_data_ptr<bool>() : nullptr;
  for_rows(bytes, [&](int64_t t, int64_t b) {
    const int64_t before = args.spec.backwards(d) ? t + 1 : t - 1, later = std::max(t, before);
    const bool first = before < 0 || before >= T || b >= offsets[before + 1] - offsets[before];
    char* const row = to + (offsets[t] + b) * bytes;
    // The end of a row, where the backward direction begins, is no edge between two steps.
    if (reset && !(first && args.spec.backwards(d)) && reset[offsets[later] + b]) {
      std::memset(row, 0, bytes);
    } else {
      std::memcpy(row,
                  first ? initial + batch_row(b) * bytes : from + outer(before, b) * args.D * bytes,
                  bytes);
    }
  });
  if (!args.operand_mask.defined()) return result;
  const Tensor mask = args.operand_mask.select(0, d);
  if (order.empty() && !args.packed) {
    result.view({T, B, args.R}).mul_(mask);
    return result;
  }
  const Tensor batch_rows = at::empty({N}, at::kLong);
  int64_t* const of = batch_rows.mutable_data_ptr<int64_t>();
  for_rows(sizeof(int64_t), [&](int64_t t, int64_t b) { of[offsets[t] + b] = batch_row(b); });
  return result.mul_(mask.index_select(0, batch_rows));
}

}  // namespace fastrnn
