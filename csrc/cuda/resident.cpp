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
      if constexpr (!std::is_same_v<typename decltype(s)::type, double>) {
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

int64_t shared_bytes(int gates, Dtype dtype, const Team& team, int64_t hidden, bool backward) {
  constexpr int64_t kQuad = 16, kFloat = 4;
  const int scalar = static_cast<int>(bytes(dtype));
  const int registers = weight_registers(team.tier, team.tensor_cores, team.rows, backward);
  const bool here = team.tier != Tier::kGrid;  // the exchange is in shared memory
  if (backward) {
    const ProductLayout layout = backward_layout(gates, scalar, team);
    const int64_t quads = layout.shared_quads(backward_form(gates, scalar, registers)) +
                          int64_t{team.rows} * backward_stride(team, gates, scalar);
    return quads * kQuad + (here ? 2 : 0) * kFloat * inbox_floats(team);
  }
  const ProductLayout layout = forward_layout(gates, scalar, team.units, static_cast<int>(hidden));
  const int64_t quads = layout.shared_quads(forward_form(gates, registers)) +
                        (here ? 2 : 1) * int64_t{team.rows} * forward_stride(team, scalar);
  return quads * kQuad +
         kFloat * (bias_floats(team, gates) + sums_floats(layout, gates, team.rows));
}

int64_t exchange_bytes(Dtype dtype, const Team& team, int64_t directions, bool backward) {
  if (team.tier != Tier::kGrid) return 0;
  const int64_t tiles = 2 * directions * team.teams * team.tiles;
  if (backward) return tiles * team.members * inbox_floats(team) * 4;
  return tiles * team.rows * forward_stride(team, static_cast<int>(bytes(dtype))) * 16;
}

int64_t arrival_bytes(const Team& team, int64_t directions) {
  if (team.tier != Tier::kGrid) return 0;
  return directions * team.teams * kCounterWords * 4;
}

}  // namespace fastrnn::cuda
