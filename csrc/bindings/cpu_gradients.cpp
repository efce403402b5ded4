#include "cpu_gradients.h"

#include <ATen/Parallel.h>
#include <ATen/ops/mm.h>

#include "../cpu/dispatch.h"
#include "../cpu/parallel.h"
#include "cpu_memory.h"

namespace fastrnn {
namespace {

using at::Tensor;

// The type that a layer's products are computed in. torch's float16 product on the CPU is several
// times slower than converting to float32 and back, and so is its bfloat16 product on some.
at::ScalarType product_type(const LayerRows& rows) {
  const at::ScalarType dtype = rows.args.x.scalar_type();
  const bool wide = dtype == at::kBFloat16 && !cpu::multiplies_bfloat16(rows.N);
  return dtype == at::kHalf || wide ? at::kFloat : dtype;
}

// Our own kernel for a product of (M, K) and (K, N) of such a type, or null where torch's serves.
cpu::ProductKernel kernel_for(at::ScalarType type, int64_t M, int64_t N, int64_t K) {
  if (type == at::kDouble) return nullptr;
  const bool pairs = type == at::kBFloat16;
  return cpu::product_kernel(pairs ? Dtype::kBfloat16 : Dtype::kFloat32, M * N, K);
}

// A right-hand side of a product, and its result; `sums` is the result in the type of the sums, and
// the result itself where that is its type.
struct Side {
  Tensor b, sums, result;
};

// a b, or a^T b, in `type`, written to the sums or added to them, for one or two sides; rounded to
// the result where this is the last that is added. Rows of all but the result may lie apart. A
// kernel takes float32 sums only.
void product(at::ScalarType type, cpu::ProductKernel kernel, const Tensor& a_given, bool transposed,
             std::vector<Side> sides, bool add, bool last) {
  const Tensor a = a_given.to(type);
  const int64_t M = a.size(transposed), K = a.size(!transposed);
  for (Side& side : sides) {
    side.b = side.b.to(type);
    if (K == 0 && !add) side.sums.zero_();
  }
  // Both sides are of the same types. The kernel rounds to the type that it reads.
  const bool rounds = last && sides[0].sums.scalar_type() != sides[0].result.scalar_type();
  const bool kernel_rounds =
      rounds && kernel && K > 0 && sides[0].result.scalar_type() == a.scalar_type();
  if (kernel && K > 0) {
    const int threads = cpu::usable_threads(at::get_num_threads());
    cpu::ProductParams p{M,  K,      a.const_data_ptr(), a.stride(0), transposed, add, threads,
                         {}, nullptr};
    for (size_t i = 0; i < sides.size(); ++i) {
      const auto& [b, sums, out] = sides[i];
      void* const rounded = kernel_rounds ? out.mutable_data_ptr() : nullptr;
      p.sides[i] = {sums.size(1), b.const_data_ptr(), sums.mutable_data_ptr<float>(),
                    b.stride(0),  sums.stride(0),     rounded};
    }
    const Tensor workspace = scratch(kernel(p));
    p.workspace = workspace.mutable_data_ptr();
    kernel(p);
  } else if (K > 0) {
    const Tensor left = transposed ? a.t() : a;
    for (Side& side : sides) {
      if (add) {
        side.sums.addmm_(left, side.b);
      } else {
        at::mm_out(side.sums, left, side.b);
      }
    }
  }
  if (!rounds || kernel_rounds) return;
  for (Side& side : sides) side.result.copy_(side.sums);
}

// A product with b whose result has so many rows and the layer's dtype.
Side side_of(const LayerRows& of, const Tensor& b, int64_t rows, cpu::ProductKernel kernel) {
  const at::TensorOptions& options = of.args.options;
  const Tensor result = empty_block({rows, b.size(1)}, options);
  const at::ScalarType type = product_type(of), dtype = of.args.x.scalar_type();
  if (type == dtype && (dtype == at::kFloat || !kernel)) return {b, result, result};
  return {b, empty_block({rows, b.size(1)}, options.dtype(at::kFloat)), result};
}

// a^T b for rows that belong together.
Tensor rows_product(const LayerRows& rows, const Tensor& a, const Tensor& b) {
  const at::ScalarType type = product_type(rows);
  const auto kernel = kernel_for(type, a.size(1), b.size(1), a.size(0));
  const Side side = side_of(rows, b, a.size(1), kernel);
  product(type, kernel, a, true, {side}, false, true);
  return side.result;
}

// The gradient of w_hh; and that of w_ih, where it comes from the same gates, by `x`.
Tensor recurrent_gradient(const LayerRows& rows, const Tensor& gates, const Tensor& output,
                          int64_t d, cpu::ProductKernel kernel, const Side* x) {
  const LayerArgs& args = rows.args;
  const int64_t M = gates.size(1), shifted = args.N - args.B;
  const Tensor h0 = args.hx[0].select(0, d);
  const Side side = side_of(rows, h0, M, kernel);
  const auto add_up = [&](int64_t begin, int64_t count, const Tensor& b, bool add, bool last) {
    std::vector<Side> sides{{b, side.sums, side.result}};
    if (x) sides.push_back({x->b.narrow(0, begin, count), x->sums, x->result});
    product(product_type(rows), kernel, gates.narrow(0, begin, count), true, sides, add, last);
  };
  // Where all rows are there, a step's previous h stands in the output, a step before, but for the
  // one that starts from h0. A copy takes longer than going over the sums twice for many rows only.
  const bool in_place = !args.packed && rows.order.empty() && !rows.resets.defined() &&
                        !args.operand_mask.defined() && shifted > 0;
  const int64_t copied = rows.N * args.R * int64_t(output.element_size());
  const int64_t summed = M * (args.R + (x ? args.I : 0)) * int64_t(sizeof(float));
  if (in_place && copied > summed) {
    const bool backwards = args.spec.backwards(d);
    const Tensor h = output.view({args.N, args.D, args.R}).select(1, d);
    add_up(backwards ? shifted : 0, args.B, h0, false, false);
    add_up(backwards ? 0 : args.B, shifted, h.narrow(0, backwards ? args.B : 0, shifted), true,
           true);
  } else {
    add_up(0, rows.N, rows.operands(output, d), false, true);
  }
  return side.result;
}

}  // namespace

Tensor input_gradient(const LayerRows& rows, const LayerGradients& grads) {
  const LayerArgs& args = rows.args;
  const at::ScalarType dtype = args.x.scalar_type();
  const int64_t K = grads.gates.size(3);
  // With few rows the kernel would spend on packing the weights what it saves.
  constexpr int64_t kManyRows = 32;
  const at::ScalarType type = product_type(rows);
  const bool own = type != at::kBFloat16 && rows.N >= kManyRows;
  const cpu::ProductKernel kernel = own ? kernel_for(type, rows.N, args.I, K) : nullptr;
  const Tensor sum = empty_block({rows.N, args.I}, args.options.dtype(type));
  for (int64_t d = 0; d < args.D; ++d) {
    const Tensor gates = grads.gates.select(0, d).select(1, 0);
    product(type, kernel, gates, false, {{args.weight(d, kWih), sum, sum}}, d > 0, false);
  }
  return rows.scatter(sum.to(dtype));
}

OptionalTensors weight_gradients(const LayerRows& rows, const LayerGradients& grads,
                                 const Tensor& output) {
  const LayerArgs& args = rows.args;
  const at::ScalarType type = product_type(rows), dtype = args.x.scalar_type();
  const int64_t last = grads.gates.size(2) - 1;
  const int64_t M = grads.gates.size(3);
  const cpu::ProductKernel kernel = kernel_for(type, M, args.I + args.R, rows.N);
  // Our own product turns the gates into rows for both at once.
  const bool together = last == 0 && kernel && args.cell.recurrent;
  const Tensor x = rows.gather(args.x);
  OptionalTensors result(args.D * args.slots());
  for (int64_t d = 0; d < args.D; ++d) {
    const auto to = result.begin() + d * args.slots();
    const Tensor gates = grads.gates.select(0, d), input = gates.select(1, 0);
    const Side w_ih = side_of(rows, x, M, kernel);
    if (!together) product(type, kernel, input, true, {w_ih}, false, true);
    to[kWih] = w_ih.result;
    if (args.cell.recurrent) {
      to[kWhh] = recurrent_gradient(rows, gates.select(1, last), output, d, kernel,
                                    together ? &w_ih : nullptr);
    }
    const Tensor sums = grads.units.defined() ? grads.units.select(0, d) : Tensor();
    // Each gets a tensor of its own: an optimizer may change them in place.
    const auto units = [&](int64_t first, int64_t count) {
      return sums.narrow(0, first * args.H, count * args.H).to(dtype, false, true);
    };
    const int64_t G = args.cell.gates;
    if (args.biases) {
      to[kBih] = units(0, G);
      to[kBhh] = units(last * G, G);
    }
    if (args.projected)
      to[kWhr] = rows_product(rows, grads.h.select(0, d), grads.hidden.select(0, d));
    int64_t first = (last + 1) * G;
    for (int k = 0; k < args.cell.params; first += args.cell.param_rows(k++))
      to[kFirstParam + k] = units(first, args.cell.param_rows(k));
  }
  return result;
}

}  // namespace fastrnn
