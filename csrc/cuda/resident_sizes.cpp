// The memory of the resident kernels.
#include "resident.h"

namespace fastrnn::cuda {

int64_t shared_bytes(const CellSizes& cell, Dtype dtype, const Team& team, int64_t hidden,
                     bool backward) {
  constexpr int64_t kQuad = 16, kFloat = 4;
  const auto [gates, states, params] = cell;
  const int scalar = static_cast<int>(bytes(dtype));
  const int registers =
      weight_registers(team.tier, gates, states, params, team.tensor_cores, team.rows, backward);
  const int rows = tile_rows(team.rows);
  const bool here = team.tier != Tier::kGrid;  // the exchange is in shared memory
  if (backward) {
    const ProductLayout layout = backward_layout(gates, scalar, team);
    const int64_t quads = layout.shared_quads(backward_form(gates, scalar, registers)) +
                          int64_t{rows} * backward_stride(team, gates, scalar);
    return link_bytes(team.tier) + quads * kQuad +
           kFloat * ((here ? 2 : 0) * inbox_floats(team) + params_floats(team, params));
  }
  const ProductLayout layout = forward_layout(gates, scalar, team.units, static_cast<int>(hidden));
  const int64_t quads = layout.shared_quads(forward_form(gates, registers)) +
                        (here ? 2 : 1) * int64_t{rows} * forward_stride(team, scalar);
  return link_bytes(team.tier) + quads * kQuad +
         kFloat * (bias_floats(team, gates) + params_floats(team, params) +
                   sums_floats(layout, gates, rows));
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
