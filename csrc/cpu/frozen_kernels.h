// From a frozen call to the kernel of its cell and type of weights, for one instruction set.
#pragma once

#include "frozen_layer.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <class Cell, class Op>
size_t serve_frozen(const FrozenCall& call, bool measure) {
  return serve(call.threads, measure,
               [&](int threads) { return FrozenStack<Cell, Op>(call, threads); });
}

template <class Op>
size_t serve_frozen(const FrozenCall& call, bool measure) {
  constexpr bool kInt8 = std::is_same_v<Op, FrozenInt8>;
  switch (call.shape.cell) {  // positions in cells.def; frozen_serves knows them
    case 0:
      return serve_frozen<Lstm, Op>(call, measure);
    case 1:
      return serve_frozen<Gru, Op>(call, measure);
    case 2:
      if constexpr (!kInt8) return serve_frozen<RnnTanh, Op>(call, measure);
      break;
    case 3:
      if constexpr (!kInt8) return serve_frozen<RnnRelu, Op>(call, measure);
      break;
  }
  __builtin_unreachable();
}

template <class Op>
FrozenKernels frozen_kernels_with() {
  return {[](const FrozenCall& call) { return serve_frozen<Op>(call, true); },
          [](const FrozenCall& call) { serve_frozen<Op>(call, false); }};
}

inline FrozenKernels frozen_kernels_of(FrozenType type) {
  switch (type) {
    case FrozenType::kFloat32:
      return frozen_kernels_with<FrozenFloat32>();
    case FrozenType::kBfloat16:
      return frozen_kernels_with<FrozenWide>();
    case FrozenType::kInt8:
      return frozen_kernels_with<FrozenInt8>();
  }
  __builtin_unreachable();
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
