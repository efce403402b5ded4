#include "resident.h"

#include <type_traits>

#include "dispatch.h"

namespace fastrnn::cuda {

namespace {

// Calls f(Type<Cell>, Type<Scalar>, std::integral_constant<Tier, tier>).
template <class F>
cudaError_t with_kernel(int cell, Dtype dtype, Tier tier, F f) {
  return with_cell(cell, [&](auto c) {
    return with_dtype(dtype, [&](auto s) {
      using Cell = typename decltype(c)::type;
      constexpr bool kExists = Cell::kRecurrent && Cell::kNorms == 0;
      if constexpr (kExists && !std::is_same_v<typename decltype(s)::type, double>) {
        switch (tier) {
          case Tier::kCta:
            return f(c, s, std::integral_constant<Tier, Tier::kCta>{});
          case Tier::kCluster:
            return f(c, s, std::integral_constant<Tier, Tier::kCluster>{});
          case Tier::kGrid:
            return f(c, s, std::integral_constant<Tier, Tier::kGrid>{});
          case Tier::kStep:
            break;
        }
      }
      return cudaErrorInvalidValue;
    });
  });
}

}  // namespace

cudaError_t resident_forward(int cell, Dtype dtype, const ForwardSequence& sequence,
                             cudaStream_t stream, Residency& residency) {
  return with_kernel(cell, dtype, sequence.team.tier, [&](auto c, auto s, auto tier) {
    return resident_forward<typename decltype(c)::type, typename decltype(s)::type,
                            decltype(tier)::value>(sequence, stream, residency);
  });
}

cudaError_t resident_backward(int cell, Dtype dtype, const BackwardSequence& sequence,
                              cudaStream_t stream, Residency& residency) {
  return with_kernel(cell, dtype, sequence.team.tier, [&](auto c, auto s, auto tier) {
    return resident_backward<typename decltype(c)::type, typename decltype(s)::type,
                             decltype(tier)::value>(sequence, stream, residency);
  });
}

}  // namespace fastrnn::cuda
