// From a params struct to the kernel of its cell and dtype, for one instruction set.
#pragma once

#include "backward.h"
#include "forward.h"
#include "gemm.h"
#include "vec_math.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <template <class> class Pass, class Params>
struct Launch {
  template <class Op>
  static size_t with(const Params& params, bool measure) {
    typename Pass<Op>::Step step = nullptr;
    int position = 0;
#define FASTRNN_CELL_ENTRY(type, mode) \
  if (params.shape.cell == position++) step = &Pass<Op>::template step<type>;
#include FASTRNN_CELLS
#undef FASTRNN_CELL_ENTRY
    return serve(params.shape.threads, measure,
                 [&](int threads) { return Pass<Op>(params, step, threads); });
  }

  static size_t call(const Params& params, bool measure) {
    // The levels above AVX512 differ in bfloat16 alone and serve nothing else (dispatch.cpp).
    if constexpr (FASTRNN_LEVEL >= 3) {
      return with<Bfloat16Operand>(params, measure);
    } else {
      switch (params.shape.dtype) {
        case Dtype::kFloat64:
          return with<Plain<double>>(params, measure);
        case Dtype::kFloat32:
          return with<Plain<float>>(params, measure);
        case Dtype::kBfloat16:
          return with<Bfloat16Operand>(params, measure);
        case Dtype::kFloat16:
          return with<Plain<Half>>(params, measure);
      }
      __builtin_unreachable();
    }
  }
};

inline Kernels make_kernels() {
  using F = Launch<Forward, ForwardParams>;
  using B = Launch<Backward, BackwardParams>;
  Kernels kernels{[](const ForwardParams& p) { return F::call(p, true); },
                  [](const ForwardParams& p) { F::call(p, false); },
                  [](const BackwardParams& p) { return B::call(p, true); },
                  [](const BackwardParams& p) { B::call(p, false); },
                  nullptr,
                  nullptr};
  if constexpr (FASTRNN_LEVEL == 1 || FASTRNN_LEVEL == 2)
    kernels.product_float32 = &run_product<Plain<float>>;
  if constexpr (FASTRNN_LEVEL >= 3) kernels.product_bfloat16 = &run_product<Bfloat16Operand>;
  return kernels;
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
