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

// a b, or a^T b, written to `out` or added to it. Rows of all three may lie apart. `out` has the
// type of product_result().
void product(const Tensor& a_given, bool transposed, const Tensor& b_given, const Tensor& out,
             bool add) {
  Tensor target = out;
  if (b_given.size(0) == 0) {
    if (!add) target.zero_();
    return;
  }
  const Tensor a = for_product(a_given), b = for_product(b_given);
  // With few rows the kernel would spend on packing `b` what it saves.
  constexpr int64_t kManyRows = 32;
  const bool pays = transposed || out.size(0) >= kManyRows;
  const cpu::ProductKernel kernel = kernel_for(a.scalar_type());
  if (kernel && pays && out.scalar_type() == at::kFloat) {
    kernel({out.size(0), out.size(1), b.size(0), a.const_data_ptr(), b.const_data_ptr(),
            out.mutable_data_ptr<float>(), a.stride(0), b.stride(0), out.stride(0), transposed, add,
            cpu::usable_threads(at::get_num_threads())});
    return;
  }
  const Tensor left = transposed ? a.t() : a;
  if (add) {
    target.addmm_(left, b);
  } else {
    at::mm_out(target, left, b);
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
  product(a, true, b, result, false);
  return result;
}

Tensor recurrent_gradient(const LayerRows& rows, const Tensor& grad_h, const Tensor& output,
                          int64_t d) {
  const LayerArgs& args = rows.args;
  if (args.packed || !rows.order.empty() || rows.resets.defined()) {
    return rows_product(args, grad_h, rows.previous_h(output, d));
  }
  // The previous h of all steps but one is the output, shifted by a step; no copy is needed.
  const bool backwards = rows.backwards(d);
  const int64_t shifted = args.N - args.B;
  const Tensor h = output.view({args.N, args.D, args.R}).select(1, d);
  const Tensor result = rows_product(args, grad_h.narrow(0, backwards ? shifted : 0, args.B),
                                     args.hx[0].select(0, d));
  if (shifted > 0) {
    product(grad_h.narrow(0, backwards ? 0 : args.B, shifted), true,
            h.narrow(0, backwards ? args.B : 0, shifted), result, true);
  }
  return result;
}

}  // namespace

Tensor input_gradient(const LayerRows& rows, const LayerGradients& grads) {
  const LayerArgs& args = rows.args;
  const Tensor sum = product_result(args, rows.N, args.I, false);
  for (int64_t d = 0; d < args.D; ++d) {
    product(grads.gates.select(0, d).select(1, 0), false, args.weights[d].w_ih, sum, d > 0);
  }
  return rows.scatter(sum.to(args.x.scalar_type()));
}

std::vector<Tensor> weight_gradients(const LayerRows& rows, const LayerGradients& grads,
                                     const Tensor& output) {
  const LayerArgs& args = rows.args;
  const at::ScalarType dtype = args.x.scalar_type();
  const int64_t last = grads.gates.size(2) - 1;
  const Tensor x = rows.gather(args.x);
  std::vector<Tensor> result;
  for (int64_t d = 0; d < args.D; ++d) {
    const Tensor gates = grads.gates.select(0, d);
    result.push_back(rows_product(args, gates.select(1, 0), x).to(dtype));
    result.push_back(recurrent_gradient(rows, gates.select(1, last), output, d).to(dtype));
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
