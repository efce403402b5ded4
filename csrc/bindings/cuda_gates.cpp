#include "cuda_gates.h"

#include "../cuda/rebuild.h"
#include "cuda_rows.h"

namespace fastrnn::cuda {

at::Tensor input_product(const Call& call, Library& library) {
  const at::Tensor x_gates = call.empty({call.D, call.N, call.cell.gates * call.H});
  for (int64_t d = 0; d < call.D; ++d) {
    library.product(matrix(x_gates[d]), matrix(call.x_rows()), matrix(call.weights[d].w_ih),
                    Transpose::kRight, false);
  }
  return x_gates;
}

at::Tensor rebuilt_gates(const Call& call, const at::Tensor& output, const Context& context) {
  const int64_t G = call.cell.gates, K = call.cell.saved;
  const at::Tensor x_gates = input_product(call, context.blas());
  // Not added to x_gates, because a GRU's parts are not just added. The peak of memory is not here:
  // backward's gate gradients come where this buffer was.
  const at::Tensor h_gates = call.empty(x_gates.sizes());
  Rebuild p{};
  for (int64_t d = 0; d < call.D; ++d) {
    const DirectionTensors& w = call.weights[d];
    context.blas().product(matrix(h_gates[d]), matrix(previous_h(call, output, d)), matrix(w.w_hh),
                           Transpose::kRight, false);
    p.b_ih[d] = data(w.b_ih);
    p.b_hh[d] = data(w.b_hh);
  }
  // Each unit's gates are read before its own values are written.
  const at::Tensor saved = K == G ? x_gates : call.empty({call.D, call.N, K * call.H});
  p.shape = call.shape;
  p.x_gates = data(x_gates);
  p.h_gates = data(h_gates);
  p.saved = data(saved);
  call.report({launch_rebuild(call.number, call.dtype, p, context.stream()),
               std::string("the launch that rebuilds the gates of ") + call.cell.mode});
  return saved.view({call.D, call.N, K, call.H});
}

}  // namespace fastrnn::cuda
