// The backward time loop of the resident kernels, the same for all tiers.
#pragma once

#include "resident_loop.cuh"

namespace fastrnn::cuda {

template <class Cell, class Scalar, bool kTensorCores, int kRows, Tier kTier>
struct ResidentBackward {
  static constexpr int kGates = Cell::kGates, kBytes = sizeof(Scalar);
  static constexpr int kTileRows = tile_rows(kRows), kNs = kTileRows / 8;
  static constexpr int kEach = kThreadRows<kTier, kRows>, kUnits = kThreadUnits<kTier, kRows>;
  static constexpr bool kThroughMemory = Link<kTier>::kThroughMemory;
  static constexpr ProductForm kForm = backward_form(
      kGates, kBytes,
      weight_registers(kTier, kGates, Cell::kStates, Cell::kParams, kTensorCores, kRows, true));
  using Product = ResidentProduct<Scalar, kTileRows, kTensorCores, kForm>;
  using Update = BackwardUpdate<Cell, Scalar>;

  __device__ __forceinline__ static void run(const BackwardSequence& p) {
    const Team& team = p.team;
    const Shape& s = p.step.shape;
    const Member me(team, blockIdx);
    const int d = me.d, stride = backward_stride(team, kGates, kBytes);
    const int quads = kTileRows * stride, width = stride * Product::kValues;
    const int octets = team.units / 8, floats = inbox_floats(team);
    // 65536 / octets, rounded up: exact quotients of all octets of a layer, without a division.
    const int inverse = (65535 + octets) / octets;
    const ProductLayout division = backward_layout(kGates, kBytes, team);
    const int tiles = kThroughMemory ? team.tiles : 1;
    const int hidden = static_cast<int>(s.hidden), batch = static_cast<int>(s.batch);
    const Elements<Cell, kUnits> elements(team, hidden - me.unit);
    const DeviceSchedule schedule{p.offsets, static_cast<int>(p.steps), batch, d >= p.forwards};

    // In shared memory, after what the link has there: weights; gate gradients of the member; what
    // it gets from all; the cell's parameters.
    Quad* const weights = reinterpret_cast<Quad*>(shared_memory() + link_bytes(kTier));
    Quad* const operand = weights + division.shared_quads(kForm);
    // For two parities, the tiles and the owners; in shared memory, one tile and this owner.
    float* inbox = reinterpret_cast<float*>(operand + quads);
    const int owners = kThroughMemory ? team.members : 1;
    float* const params = inbox + (kThroughMemory ? 0 : 2 * floats);
    if constexpr (kThroughMemory) {
      inbox = static_cast<float*>(p.exchange) +
              (int64_t{d} * team.teams + me.team) * 2 * tiles * owners * floats;
    }
    const auto inbox_of = [&](int parity, int tile, int owner) {
      return inbox + ((parity * tiles + tile) * owners + owner) * int64_t{floats};
    };

    const Scalar* w_hh_t = static_cast<const Scalar*>(p.weights[d]);
    const int padded_hidden = static_cast<int>(padded(hidden));
    const Product product(
        division, weights,
        [&](int group, int half, int lane_unit) -> const Scalar* {
          const int to = group * 16 + half * 8 + lane_unit;
          return to < hidden ? w_hh_t + int64_t{to} * kGates * padded_hidden : nullptr;
        },
        [&](int k) {
          const int gate = k / team.units, unit = me.unit + k % team.units;
          return gate < kGates && unit < padded_hidden ? gate * padded_hidden + unit : -1;
        });
    for (int q = threadIdx.x; q < quads; q += kResidentThreads) operand[q] = Quad{};
    load_member_params<Cell, Scalar>(p.step, d, team.units, me.unit, params);

    Update update[kEach][kUnits];
    Moments<kEach> moment;  // of the thread's rows, in the tile and the step that were loaded last
    const auto load = [&](const StepRows& step_rows, int tile) {
      moment = {};
      const Uniform all(p.step, step_rows, batch);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int b = me.batch + tile * kRows + elements.row(i);
        if (elements.has(i) && b < max(step_rows.now.count, step_rows.after.count))
          moment.add(i, all.is ? all.moment : moment_of(p.step, step_rows, d, b));
      }
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int b = me.batch + tile * kRows + elements.row(i);
        if (!moment[i].visited()) continue;
#pragma unroll
        for (int k = 0; k < kUnits; ++k) {
          if (elements.has_unit(k))
            update[i][k].load(p.step, step_rows, moment[i], d, b, me.unit + elements.unit + k);
        }
      }
    };
    Link<kTier> link(p.arrivals, team, me, 1);
    link.begin();
    const int end = schedule.steps - 1;
    StepRows step_rows = schedule.step_rows(end);
    load(step_rows, 0);
    // Position -1 has no rows of its own: there the last rows hand their gradient on to h0.
    for (int position = end;; --position) {
      const int now = opaque(position & 1), before = 1 - now;
      for (int tile = 0; tile < tiles; ++tile) {
        const int first = me.batch + tile * kRows;
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
          const int row = elements.row(i), unit = elements.unit;
          const int b = first + row;
          if (!moment[i].visited()) continue;
          float total[kUnits] = {};
          if (moment[i].carried()) {
            const int place = opaque(row);
            const float* from[kUnits];
#pragma unroll
            for (int k = 0; k < kUnits; ++k) {
              from[k] = inbox_of(before, tile, kThroughMemory ? me.rank : 0) +
                        (unit / 8 * kNs + place / 8) * kOctetFloats +
                        octet_slot(unit / 8, unit % 8 + k, place % 8);
            }
#pragma unroll 4
            for (int member = 0; member < team.members; ++member) {
#pragma unroll
              for (int k = 0; k < kUnits; ++k) {
                const float* sum = from[k] + member * octets * kNs * kOctetFloats;
                total[k] += kThroughMemory ? load_fresh(sum) : *sum;
              }
            }
          }
          // A second unit that does not exist is computed, and goes nowhere.
          const int first_unit = me.unit + unit;
          if (p.step.operand_mask && moment[i].carried()) {
#pragma unroll
            for (int k = 0; k < kUnits; ++k) {
              if (elements.has_unit(k))
                total[k] = masked<Scalar>(p.step, d, b, first_unit + k, total[k]);
            }
          }
          if (moment[i].leaves()) {
#pragma unroll
            for (int k = 0; k < kUnits; ++k) {
              if (elements.has_unit(k)) update[i][k].leave(p.step, d, b, first_unit + k, total[k]);
            }
            continue;
          }
#pragma unroll
          for (int k = 0; k < kUnits; ++k) {
            Update& of = update[i][k];
            for_each<Cell::kParams>(
                [&](auto n) { of.params[n] = params[n * team.units + unit + k]; });
            if (elements.has_unit(k))
              of.load_grad_sequences(p.step, step_rows, d, b, first_unit + k);
            of.compute(p.step, d, b, first_unit + k, total[k]);
          }
#pragma unroll
          for (int k = 0; k < kUnits; ++k) {
            if (!elements.has_unit(k)) continue;
            update[i][k].save(p.step, step_rows, moment[i], d, b, first_unit + k);
#pragma unroll
            for (int g = 0; g < kGates; ++g) {
              reinterpret_cast<Scalar*>(operand)[row * width + g * team.units + unit + k] =
                  as_operand<kTensorCores>(Storage<Scalar>::narrow(update[i][k].grad_h[g]));
            }
          }
        }
        if (rows_of_tile(team.rows, step_rows.now.count, first) > 0) {
          __syncthreads();
          const int pairs = min((team.rows + 1) / 2, 4);  // of rows, in every eight
          link.expect(floats / 4 * pairs * static_cast<int>(sizeof(float)));
          const int ratio = opaque(inverse);
          product.run(operand, stride,
                      [&](int /*slice*/, int group, int half, int n, int unit, int pair, Pair sum) {
                        const int octet = group * 2 + half;
                        const int owner = octet * ratio >> 16, own = octet - owner * octets;
                        if (owner >= team.members || 2 * pair >= team.rows) return;
                        float* to = inbox_of(now, tile, kThroughMemory ? owner : 0) +
                                    ((me.rank * octets + own) * kNs + n) * kOctetFloats +
                                    octet_slot(own, unit, 2 * pair);
                        link.send(reinterpret_cast<Pair*>(to), owner, sum);
                      });
        }
        if (tiles > 1) {
          if (tile + 1 < tiles) load(step_rows, tile + 1);
          __syncthreads();
        }
      }
      if (position < 0) break;
      // Other warps of this block may still read the operand, though all is here that it waits for.
      if constexpr (kTier == Tier::kCluster) __syncthreads();
      link.arrive();
      step_rows = {schedule[position - 2], step_rows.before, step_rows.now};
      load(step_rows, 0);
      link.wait();
    }
  }
};

template <class Cell, class Scalar, bool kTensorCores, int kRows, Tier kTier>
__global__ void __launch_bounds__(kResidentThreads, 1)
    resident_backward_kernel(const __grid_constant__ BackwardSequence p) {
  if constexpr (kTier != Tier::kCluster || kHasClusters) {
    ResidentBackward<Cell, Scalar, kTensorCores, kRows, kTier>::run(p);
  }
}

}  // namespace fastrnn::cuda
