// The resident kernels: one launch for a whole sequence, with the recurrent weights on the chip.
// What they are told, how they divide a layer, what memory they need; readable by a host compiler.
//
// A team of blocks serves a batch tile of one direction. Each member owns all gates of `units`
// hidden units and keeps their weights, in registers as far as they go and in shared memory beyond.
//
//   S, kCta       a team is one block; h stays in its shared memory
//   C, kCluster   a team is a thread-block cluster; members write into each other's shared memory
//   G, kGrid      a team's blocks run at the same time anywhere on the device and meet in global
//                 memory; a team serves several tiles in every step
//
// Forward exchanges h'. Backward exchanges partial sums of the gradient of h: a member has the gate
// gradients of its own units, multiplies them with its rows of W_hh, and sends every owner the part
// for the owner's units, who adds the parts in the order of the members.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "../common/host_device.h"
#include "params.h"

namespace fastrnn::cuda {

constexpr int kResidentWarps = 8;
constexpr int kResidentThreads = kResidentWarps * 32;

enum class Tier : int { kStep = 0, kCta = 1, kCluster = 2, kGrid = 3 };

constexpr const char* tier_name(Tier tier) {
  return tier == Tier::kCta       ? "cta"
         : tier == Tier::kCluster ? "cluster"
         : tier == Tier::kGrid    ? "grid"
                                  : "step";
}

struct Team {
  Tier tier;
  bool tensor_cores;  // mma (16-bit types, or fp32 rounded to tf32); else multiply-adds
  int rows;           // of a batch tile: 8 or fewer, or 32 with tensor cores
  int members;        // blocks of a team; members * units >= H
  int units;          // hidden units of a member, a multiple of 8
  int teams;          // of each direction
  int tiles;          // batch tiles of a team; teams * tiles * rows >= B
};

// Rows that the products and the memory of a tile have room for.
FASTRNN_HD constexpr int tile_rows(int rows) { return rows > 8 ? 32 : 8; }

// Hidden units as the weights of a resident kernel have them: their rows begin on sixteen bytes.
FASTRNN_HD constexpr int64_t padded(int64_t hidden) { return (hidden + 7) / 8 * 8; }

template <class Step>
struct Sequence {
  Step step;  // all but step_rows, `product`, the weights, and what a projection needs
  Team team;
  // Scalar, on sixteen bytes, zero from H to H' = padded(H). Forward: W_hh, (G, H, H'). Backward:
  // its transpose, (H, G, H').
  const void* weights[kMostDirections];
  int64_t steps;
  int forwards;            // as in RowSchedule
  const int64_t* offsets;  // (T + 1), as in Schedule; null where every step has all B rows
  // Written, and read by other blocks; kGrid only. exchange_bytes() and arrival_bytes() say how
  // much; the launcher sets them to zero.
  void* exchange;
  unsigned* arrivals;
};

using ForwardSequence = Sequence<ForwardStep>;
using BackwardSequence = Sequence<BackwardStep>;
// What every driver takes as parameters of a launch.
static_assert(sizeof(ForwardSequence) <= 4096 && sizeof(BackwardSequence) <= 4096);

// The form of a resident product: a lane multiplies `halves` groups of eight weight rows at a time
// and keeps reg_groups x reg_chunks pieces of that, four registers each, in registers.
struct ProductForm {
  int halves, reg_groups, reg_chunks;
};

// Of a lane's weights: as many as the compiler finds room for, with what else the kernel holds
// (benchmarks/cuda_resources.py shows it).
constexpr int weight_registers(Tier tier, int gates, int states, int params, bool tensor_cores,
                               int rows, bool backward) {
  const bool many = states > 2;  // of which a thread holds more, as of parameters
  if (tier == Tier::kCta) {
    if (!tensor_cores) return backward || many ? 48 : 64;
    return backward && !params ? 64 : 48;
  }
  const bool cluster = tier == Tier::kCluster;
  if (rows == 32 && !backward) return many ? (cluster ? 32 : 16) : (cluster ? 48 : 32);
  if (rows == 32) return cluster ? (params ? 48 : 64) : 32;
  if (!tensor_cores) return cluster ? 96 : 80;
  // With 128 three gates would spill on sm_100.
  return cluster ? ((gates == 3 || params) && !backward ? 112 : 128) : many && backward ? 64 : 96;
}

// A cell with one gate takes two octets of units, so that a tensor core tile is full.
FASTRNN_HD constexpr int octets_of_group(int gates) { return gates == 1 ? 2 : 1; }
// Half a tensor core tile takes the registers of a whole one.
constexpr ProductForm forward_form(int gates, int registers) {
  const int halves = gates * octets_of_group(gates);
  return {halves, 1, registers / 4 / ((halves + 1) / 2 * 2)};
}
// As many chunks as 32 units have in all their gates.
constexpr ProductForm backward_form(int gates, int scalar_bytes, int registers) {
  const int pieces = registers / 8, gate_chunks = gates * scalar_bytes / 2;
  const int chunks = gate_chunks < 2 ? 2 : gate_chunks > pieces ? pieces : gate_chunks;
  return {2, pieces / chunks, chunks};
}

// How a block's warps divide a product of its resident weights: groups of weight rows (eight units
// with all their gates in forward, sixteen units in backward) times K in chunks of 64 bytes. With
// fewer groups than warps, forward cuts K into slices too, whose sums are added in order.
struct ProductLayout {
  int groups, chunks, slices;

  // The most that any warp has of either, and how many warps have any.
  FASTRNN_HD int group_max() const { return (groups + kResidentWarps - 1) / kResidentWarps; }
  FASTRNN_HD int chunk_max() const { return (chunks + slices - 1) / slices; }
  FASTRNN_HD int warps() const {
    return groups >= kResidentWarps ? kResidentWarps : groups * slices;
  }
  // Pieces of a warp's weights that its registers do not hold.
  FASTRNN_HD int beyond(ProductForm form) const {
    return chunk_max() > form.reg_chunks ? chunk_max() - form.reg_chunks : 0;
  }
  FASTRNN_HD int warp_pieces(ProductForm form) const {
    const int inner = group_max() < form.reg_groups ? group_max() : form.reg_groups;
    return inner * beyond(form) + (group_max() - inner) * chunk_max();
  }
  FASTRNN_HD int shared_quads(ProductForm form) const {
    return warps() * warp_pieces(form) * form.halves * 32;
  }
};

FASTRNN_HD ProductLayout forward_layout(int gates, int scalar_bytes, int units, int hidden) {
  const int rows = gates == 1 ? 16 : 8, groups = (units + rows - 1) / rows;
  const int chunks = (hidden * scalar_bytes + 63) / 64;
  const int slices = groups < kResidentWarps ? kResidentWarps / groups : 1;
  return {groups, chunks, slices < chunks ? slices : chunks};
}
FASTRNN_HD ProductLayout backward_layout(int gates, int scalar_bytes, const Team& team) {
  return {(team.members * team.units + 15) / 16, (gates * team.units * scalar_bytes + 63) / 64, 1};
}

// Sixteen-byte words from row to row of an operand in shared memory: whole chunks, and two
// neighbouring rows in different banks.
FASTRNN_HD int operand_stride(int values, int scalar_bytes) {
  const int quads = (values * scalar_bytes + 63) / 64 * 4;
  return quads % 8 == 0 ? quads + 4 : quads;
}
FASTRNN_HD int forward_stride(const Team& team, int scalar_bytes) {
  return operand_stride(team.members * team.units, scalar_bytes);
}
FASTRNN_HD int backward_stride(const Team& team, int gates, int scalar_bytes) {
  return operand_stride(gates * team.units, scalar_bytes);
}

constexpr int kOctetFloats = 64;  // sums of eight units and eight rows

// Both biases of a member's gates, and sums of one tile, in forward; partial sums that a member
// gets for one tile in backward.
FASTRNN_HD int bias_floats(const Team& team, int gates) { return 2 * gates * team.units; }
FASTRNN_HD int params_floats(const Team& team, int params) { return params * team.units; }
FASTRNN_HD int sums_floats(const ProductLayout& layout, int gates, int rows) {
  return layout.slices * gates * layout.groups * octets_of_group(gates) * (rows / 8) * kOctetFloats;
}
FASTRNN_HD int inbox_floats(const Team& team) {
  return team.members * (team.units / 8) * (tile_rows(team.rows) / 8) * kOctetFloats;
}

// The most units that a member may have.
constexpr int max_units(Tier tier, int rows) {
  return rows == 32 ? 32 : tier == Tier::kCta ? 128 : 64;
}

// At the beginning of a block's shared memory: the transaction barriers of a cluster's member.
FASTRNN_HD constexpr int link_bytes(Tier tier) { return tier == Tier::kCluster ? 16 : 0; }

// Bytes of shared memory that a block takes; more than kMostSharedBytes has no device.
constexpr int64_t kMostSharedBytes = 256 * 1024;
struct CellSizes {
  int gates, states, params;
};
int64_t shared_bytes(const CellSizes& cell, Dtype dtype, const Team& team, int64_t hidden,
                     bool backward);

// kGrid: bytes of `exchange`, and of the counters, which lie kCounterWords apart. Else 0.
constexpr int kCounterWords = 32;
int64_t exchange_bytes(Dtype dtype, const Team& team, int64_t directions, bool backward);
int64_t arrival_bytes(const Team& team, int64_t directions);

// Launches, if `launch`; else only finds out. A kGrid team that needs more blocks than can run at
// the same time with this very kernel and its shared memory could wait forever, and is refused with
// cudaErrorCooperativeLaunchTooLarge. cudaErrorInvalidValue if there is no such cell, type or
// kernel.
template <class Step>
cudaError_t run_sequence(int cell, Dtype dtype, const Sequence<Step>& sequence, cudaStream_t stream,
                         bool launch);

// values[0 .. count) to `to` on the device, as arguments of launches: nothing waits, and a graph
// keeps its own copy.
cudaError_t write_offsets(int64_t* to, const int64_t* values, int64_t count, cudaStream_t stream);

// What inst/*.cu instantiate, one file a cell and tier.
template <class Cell, class Scalar, Tier kTier, class Step>
cudaError_t run_sequence(const Sequence<Step>& sequence, cudaStream_t stream, bool launch);

template <class Cell, class Scalar, class Step>
cudaError_t run_sequence(const Sequence<Step>& sequence, cudaStream_t stream, bool launch) {
  switch (sequence.team.tier) {
    case Tier::kCta:
      return run_sequence<Cell, Scalar, Tier::kCta>(sequence, stream, launch);
    case Tier::kCluster:
      return run_sequence<Cell, Scalar, Tier::kCluster>(sequence, stream, launch);
    case Tier::kGrid:
      return run_sequence<Cell, Scalar, Tier::kGrid>(sequence, stream, launch);
    case Tier::kStep:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace fastrnn::cuda
