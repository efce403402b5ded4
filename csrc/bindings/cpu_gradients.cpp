#include "cpu_gradients.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include "../cpu/dispatch.h"
#include "../cpu/parallel.h"
#include "cpu_memory.h"

namespace fastrnn {
namespace {

using at::Tensor;

// torch's float16 product on the CPU is several times slower than converting to float32 and back.
Tensor for_product(const Tensor& tensor) {
  return tensor.scalar_type() == at::kHalf ? tensor.to(at::kFloat) : tensor;
}

cpu::ProductKernel kernel_for(at::ScalarType dtype) {
  if (dtype == at::kFloat) return cpu::product_kernel(cpu::Dtype::kFloat32);
  if (dtype == at::kBFloat16) return cpu::product_kernel(cpu::Dtype::kBfloat16);
  return nullptr;
}

// A right-hand side of a product, and its result, which has the type of product_result().
struct Side {
  Tensor b, out;
};

// a b, or a^T b, written to `out` or added to it, for one or two sides. Rows of all may lie apart.
void product(const Tensor& a_given, bool transposed, std::vector<Side> sides, bool add) {
  const Tensor a = for_product(a_given);
  const int64_t M = a.size(transposed), K = a.size(!transposed);
  for (Side& side : sides) {
    side.b = for_product(side.b);
    if (K == 0 && !add) side.out.zero_();
  }
  if (K == 0) return;
  // With few rows the kernel would spend on packing `b` what it saves.
  constexpr int64_t kManyRows = 32;
  const bool pays = transposed || M >= kManyRows;
  const cpu::ProductKernel kernel = kernel_for(a.scalar_type());
  if (kernel && pays && sides[0].out.scalar_type() == at::kFloat) {
    const int threads = cpu::usable_threads(at::get_num_threads());
    cpu::ProductParams p{M, K, a.const_data_ptr(), a.stride(0), transposed, add, threads, {}};
    for (size_t i = 0; i < sides.size(); ++i) {
      const auto& [b, out] = sides[i];
      p.sides[i] = {out.size(1), b.const_data_ptr(), out.mutable_data_ptr<float>(), b.stride(0),
                    out.stride(0)};
    }
    return kernel(p);
  }
  const Tensor left = transposed ? a.t() : a;
  for (Side& side : sides) {
    if (add) {
      side.out.addmm_(left, side.b);
    } else {
      at::mm_out(side.out, left, side.b);
    }
  }
}

// An uninitialised result of products, in the type they are computed in.
Tensor product_result(const LayerArgs& args, int64_t rows, int64_t columns, bool transposed) {
  const at::ScalarType dtype = args.x.scalar_type();
  const bool own = transposed && dtype == at::kBFloat16 && kernel_for(dtype);
  const bool widened = dtype == at::kHalf || own;
  return empty_block({rows, columns}, widened ? args.options.dtype(at::kFloat) : args.options);
}

// a^T b for rows that belong together.
Tensor rows_product(const LayerArgs& args, const Tensor& a, const Tensor& b) {
  const Tensor result = product_result(args, a.size(1), b.size(1), true);
  product(a, true, {{b, result}}, false);
  return result;
}

// Whether a step's previous h stands in the output as it is, a step before.
bool is_shifted(const LayerRows& rows) {
  return !rows.args.packed && rows.order.empty() && !rows.resets.defined();
}

// The gradient of w_hh in `result`; and of w_ih, where it comes from the same gates, in that of
// `x`.
void recurrent_gradient(const LayerRows& rows, const Tensor& gates, const Tensor& output, int64_t d,
                        const Tensor& result, const Side* x) {
  const LayerArgs& args = rows.args;
  const auto add_up = [&](int64_t begin, int64_t count, const Tensor& h, bool add) {
    std::vector<Side> sides{{h, result}};
    if (x) sides.push_back({x->b.narrow(0, begin, count), x->out});
    product(gates.narrow(0, begin, count), true, sides, add);
  };
  if (!is_shifted(rows)) return add_up(0, rows.N, rows.previous_h(output, d), false);
  // No copy is needed but for the step that starts from the initial h.
  const bool backwards = rows.backwards(d);
  const int64_t shifted = args.N - args.B;
  const Tensor h = output.view({args.N, args.D, args.R}).select(1, d);
  add_up(backwards ? shifted : 0, args.B, args.hx[0].select(0, d), false);
  if (shifted > 0) {
    add_up(backwards ? 0 : args.B, shifted, h.narrow(0, backwards ? args.B : 0, shifted), true);
  }
}

}  // namespace

Tensor input_gradient(const LayerRows& rows, const LayerGradients& grads) {
  const LayerArgs& args = rows.args;
  const Tensor sum = product_result(args, rows.N, args.I, false);
  for (int64_t d = 0; d < args.D; ++d) {
    product(grads.gates.select(0, d).select(1, 0), false, {{args.weights[d].w_ih, sum}}, d > 0);
  }
  return rows.scatter(sum.to(args.x.scalar_type()));
}

std::vector<Tensor> weight_gradients(const LayerRows& rows, const LayerGradients& grads,
                                     const Tensor& output) {
  const LayerArgs& args = rows.args;
  const at::ScalarType dtype = args.x.scalar_type();
  const int64_t last = grads.gates.size(2) - 1;
  // Our float32 product turns a into rows for both at once; in bfloat16 that brought nothing.
  const bool together = last == 0 && dtype == at::kFloat && kernel_for(dtype);
  const Tensor x = rows.gather(args.x);
  std::vector<Tensor> result;
  for (int64_t d = 0; d < args.D; ++d) {
    const Tensor gates = grads.gates.select(0, d), input = gates.select(1, 0);
    const Tensor w_ih = product_result(args, input.size(1), args.I, true);
    const Tensor w_hh = product_result(args, input.size(1), args.R, true);
    const Side side{x, w_ih};
    if (!together) product(input, true, {side}, false);
    recurrent_gradient(rows, gates.select(1, last), output, d, w_hh, together ? &side : nullptr);
    result.push_back(w_ih.to(dtype));
    result.push_back(w_hh.to(dtype));
    if (args.biases) {
      // Both always get tensors of their own: an optimizer may change them in place.
      result.push_back(grads.bias.select(0, d).select(0, 0).to(dtype, false, true));
      result.push_back(grads.bias.select(0, d).select(0, last).to(dtype, false, true));
    }
    if (args.projected)
      result.push_back(
          rows_product(args, grads.h.select(0, d), grads.hidden.select(0, d)).to(dtype));
  }
  return result;
}

}  // namespace fastrnn
