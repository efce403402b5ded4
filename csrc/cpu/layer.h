// From a params struct to the kernel of its cell and dtype, for one instruction set.
#pragma once

#include "../cells/cell_info.h"
#include "backward.h"
#include "forward.h"
#include "gemm.h"
#include "vec_math.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <template <class, class> class Pass, class Cell, class Op, class Params>
void run_pass(const Params& params, int threads) {
  Pass<Cell, Op> pass(params, threads);
  pass.prepare();
  const auto body = [](void* context, int thread) { ((Pass<Cell, Op>*)context)->run(thread); };
  // One thread is always granted.
  if (!run_team(pass.threads(), body, &pass)) run_pass<Pass, Cell, Op>(params, 1);
}

// Enough for the number of threads asked for, and for one where fewer are granted.
template <template <class, class> class Pass, class Cell, class Op, class Params>
size_t workspace_of(const Params& params, int threads) {
  const size_t asked = Pass<Cell, Op>(params, threads).workspace();
  const size_t least = Pass<Cell, Op>(params, 1).workspace();
  return asked > least ? asked : least;
}

template <template <class, class> class Pass, class Params>
struct Launch {
  template <class Cell, class Op>
  static size_t with(const Params& params, bool measure) {
    const int threads = params.shape.threads;
    if (measure) return workspace_of<Pass, Cell, Op>(params, threads);
    run_pass<Pass, Cell, Op>(params, threads);
    return 0;
  }

  template <class Cell>
  static size_t for_dtype(const Params& params, bool measure) {
    // The levels above AVX512 differ in bfloat16 alone and serve nothing else (dispatch.cpp).
    if constexpr (FASTRNN_LEVEL >= 3) {
      return with<Cell, Bfloat16Operand>(params, measure);
    } else {
      switch (params.shape.dtype) {
        case Dtype::kFloat64:
          return with<Cell, Plain<double>>(params, measure);
        case Dtype::kFloat32:
          return with<Cell, Plain<float>>(params, measure);
        case Dtype::kBfloat16:
          return with<Cell, Bfloat16Operand>(params, measure);
        case Dtype::kFloat16:
          return with<Cell, Plain<Half>>(params, measure);
      }
      __builtin_unreachable();
    }
  }

  static size_t call(const Params& params, bool measure) {
    size_t result = 0;
    int position = 0;
#define FASTRNN_CELL_ENTRY(type, mode) \
  if (params.shape.cell == position++) result = for_dtype<type>(params, measure);
#include FASTRNN_CELLS
#undef FASTRNN_CELL_ENTRY
    return result;
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
