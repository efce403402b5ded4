#include "cuda_gates.h"

#include <ATen/ops/stack.h>

#include "../cuda/rebuild.h"
#include "cuda_rows.h"

namespace fastrnn::cuda {

at::Tensor input_product(const Call& call, Library& library) {
  const at::Tensor x_gates = call.empty({call.D, call.N, call.cell.gates * call.H});
  for (int64_t d = 0; d < call.D; ++d) {
    library.product(matrix(x_gates, d), matrix(call.x_rows()), matrix(call.weight(d, kWih)),
                    Transpose::kRight, false);
  }
  return x_gates;
}

at::Tensor rebuilt_gates(const Call& call, const at::Tensor& output, const at::Tensor& carried,
                         const Context& context) {
  const int64_t G = call.cell.gates, K = call.cell.saved;
  const at::Tensor x_gates = input_product(call, context.blas());
  // Not added to x_gates, because a GRU's parts are not just added. The peak of memory is not here:
  // backward's gate gradients come where this buffer was.
  const at::Tensor h_gates = call.empty(x_gates.sizes());
  Rebuild p{};
  call.describe(p);
  std::vector<Tensors> before(call.cell.states);  // by state and direction
  for (int64_t d = 0; d < call.D; ++d) {
    const at::Tensor operand = operands(call, output, d);
    if (call.cell.saved_reads_state) {
      const bool same = !call.operand_mask.defined() || !call.cell.recurrent;  // the cell's h
      before[0].push_back(same ? operand : previous_h(call, output, d));
    }
    if (call.cell.recurrent) {
      context.blas().product(matrix(h_gates[d]), matrix(operand), matrix(call.weight(d, kWhh)),
                             Transpose::kRight, false);
    } else {
      h_gates[d].zero_();
    }
    for (int s = 1; call.cell.saved_reads_state && s < call.cell.states; ++s)
      before[s].push_back(previous_states(call, carried[d].select(1, s - 1), s, d));
    p.b_ih[d] = data(call.weight(d, kBih));
    p.b_hh[d] = data(call.weight(d, kBhh));
  }
  Tensors prev;
  for (int s = call.projected; call.cell.saved_reads_state && s < call.cell.states; ++s) {
    prev.push_back(at::stack(before[s]));
    p.prev[s] = data(prev.back());
  }
  // Each unit's gates are read before its own values are written.
  const at::Tensor saved = K == G ? x_gates : call.empty({call.D, call.N, K * call.H});
  p.x_gates = data(x_gates);
  p.h_gates = data(h_gates);
  p.saved = data(saved);
  call.report({launch_rebuild(call.spec.cell, call.dtype, p, context.stream()),
               std::string("the launch that rebuilds the gates of ") + call.cell.mode});
  return saved.view({call.D, call.N, K, call.H});
}

}  // namespace fastrnn::cuda
