#include "resident.h"

#include "dispatch.h"

namespace fastrnn::cuda {

template <class Step>
cudaError_t run_sequence(int cell, Dtype dtype, const Sequence<Step>& sequence, cudaStream_t stream,
                         bool launch) {
  return with_types(cell, dtype, [&](auto c, auto s) {
    using Cell = typename decltype(c)::type;
    using Scalar = typename decltype(s)::type;
    if constexpr (Cell::kRecurrent && Cell::kNorms == 0 && !std::is_same_v<Scalar, double>)
      return run_sequence<Cell, Scalar>(sequence, stream, launch);
    return cudaErrorInvalidValue;
  });
}

template cudaError_t run_sequence(int, Dtype, const ForwardSequence&, cudaStream_t, bool);
template cudaError_t run_sequence(int, Dtype, const BackwardSequence&, cudaStream_t, bool);

}  // namespace fastrnn::cuda
