#include "cuda_rows.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

namespace fastrnn::cuda {

namespace {

// (T, 1) and (B), to be compared.
at::Tensor times(const Call& call) {
  return at::arange(call.T, call.options.dtype(at::kLong)).unsqueeze(1);
}

// (T, B): the steps that exist.
at::Tensor existing(const Call& call) { return times(call).lt(call.lengths); }

// The states after each step, (N, W), moved by one step, with the initial ones, (B, W), where a
// direction begins. The copies are as many as the batch has sizes.
at::Tensor shifted(const Call& call, const at::Tensor& from, const at::Tensor& initial, int64_t d) {
  const at::Tensor result = at::empty(from.sizes(), from.options());
  const int direction = static_cast<int>(d);
  Rows to{0, 0}, source{0, 0};  // copied at the next flush
  const auto flush = [&] {
    if (to.count > 0)
      result.narrow(0, to.offset, to.count).copy_(from.narrow(0, source.offset, to.count));
  };
  for (int64_t step = 0; step < call.schedule.steps(); ++step) {
    const int64_t position = call.schedule.time(direction, step);  // in the order of memory
    const auto [before, now, after] = call.schedule.step_rows(direction, position);
    const int64_t going = std::min(before.count, now.count);
    if (going < now.count) {
      result.narrow(0, now.offset + going, now.count - going)
          .copy_(initial.narrow(0, going, now.count - going));
    }
    if (going == 0) continue;
    const bool extends = to.count > 0 && to.offset + to.count == now.offset &&
                         source.offset + to.count == before.offset;
    if (!extends) {
      flush();
      to = {now.offset, 0};
      source = before;
    }
    to.count += going;
  }
  flush();
  return result;
}

}  // namespace

at::Tensor existing_x(const Call& call) {
  if (!call.lengths.defined()) return call.x_rows();
  return call.x.masked_fill(existing(call).logical_not_().unsqueeze(2), 0).view({call.N, call.I});
}

at::Tensor previous_states(const Call& call, const at::Tensor& states, int state, int64_t d) {
  const at::Tensor initial = call.hx[state][d];
  const int64_t width = states.size(1);
  at::Tensor before = shifted(call, states, initial, d).view(call.rows_shape(width));
  const bool backwards = call.spec.backwards(d);
  if (call.lengths.defined() && backwards) {
    before = at::where(times(call).eq(call.lengths.sub(1)).unsqueeze(2),
                       initial.to(states.scalar_type()), before);
  }
  if (call.resets.defined()) {
    at::Tensor cut = call.resets.t();  // at the edge before a step
    if (backwards) {
      at::Tensor after = at::zeros_like(cut);
      if (call.lengths.defined()) cut = cut.logical_and(existing(call));
      after.narrow(0, 0, call.T - 1).copy_(cut.narrow(0, 1, call.T - 1));
      cut = after;
    }
    before.masked_fill_(cut.unsqueeze(2), call.cell.state[state].initial);
  }
  if (call.lengths.defined()) before.masked_fill_(existing(call).logical_not_().unsqueeze(2), 0);
  return before.view({call.N, width});
}

at::Tensor previous_h(const Call& call, const at::Tensor& output, int64_t d) {
  return previous_states(call, output.narrow(1, d * call.R, call.R), 0, d);
}

at::Tensor operands(const Call& call, const at::Tensor& output, int64_t d) {
  const at::Tensor h = previous_h(call, output, d);
  if (!call.operand_mask.defined()) return h;
  const std::vector<int64_t>& first = call.offsets;  // of each step
  const auto count = [&](int64_t t) { return first[t + 1] - first[t]; };
  for (int64_t t = 0, end = 0; t < call.T;
       t = end) {  // as many steps at once as have the same rows
    for (end = t + 1; end < call.T && count(end) == count(t);) ++end;
    h.narrow(0, first[t], first[end] - first[t])
        .view({end - t, count(t), call.R})
        .mul_(call.operand_mask[d].narrow(0, 0, count(t)));
  }
  return h;
}

void write_final_h(const Call& call, const at::Tensor& output, const at::Tensor& hn) {
  const at::Tensor h = output.view({call.T, call.B, call.D, call.R});
  const at::Tensor last = call.lengths.sub(1).clamp(0, call.T - 1).view({1, call.B, 1});
  for (int64_t d = 0; d < call.D; ++d) {
    const at::Tensor steps = h.select(2, d);
    const at::Tensor final =
        call.spec.backwards(d) ? steps[0] : steps.gather(0, last.expand({1, call.B, call.R}))[0];
    hn[d].copy_(at::where(call.lengths.gt(0).unsqueeze(1), final, call.hx[0][d]));
  }
}

}  // namespace fastrnn::cuda
