// The forward time loop of the resident kernels, the same for all tiers.
#pragma once

#include "resident_loop.cuh"

namespace fastrnn::cuda {

template <class Cell, class Scalar, bool kTensorCores, int kRows, Tier kTier>
struct ResidentForward {
  static constexpr int kGates = Cell::kGates, kOctets = octets_of_group(kGates);
  static constexpr int kBytes = sizeof(Scalar);
  static constexpr int kTileRows = tile_rows(kRows), kNs = kTileRows / 8;
  static constexpr int kEach = kThreadRows<kTier, kRows>, kUnits = kThreadUnits<kTier, kRows>;
  static constexpr bool kThroughMemory = Link<kTier>::kThroughMemory;
  static constexpr ProductForm kForm = forward_form(
      kGates,
      weight_registers(kTier, kGates, Cell::kStates, Cell::kParams, kTensorCores, kRows, false));
  using Product = ResidentProduct<Scalar, kTileRows, kTensorCores, kForm>;
  using Update = ForwardUpdate<Cell, Scalar>;

  __device__ __forceinline__ static void run(const ForwardSequence& p) {
    const Team& team = p.team;
    const Shape& s = p.step.shape;
    const Member me(team, blockIdx);
    const int d = me.d, stride = forward_stride(team, kBytes);
    const int quads = kTileRows * stride, width = stride * Product::kValues;
    const ProductLayout division =
        forward_layout(kGates, kBytes, team.units, static_cast<int>(s.hidden));
    const int slice_floats = division.groups * kOctets * kNs * kGates * kOctetFloats;
    const int tiles = kThroughMemory ? team.tiles : 1;
    const int hidden = static_cast<int>(s.hidden), batch = static_cast<int>(s.batch);
    const int steps = static_cast<int>(p.steps);
    const Elements<Cell, kUnits> elements(team, hidden - me.unit);
    const DeviceSchedule schedule{p.offsets, steps, batch, d >= p.forwards};

    // In shared memory, after what the link has there: weights; h, twice where members write it
    // here; b_ih, b_hh and the cell's parameters; sums of the slices of K.
    Quad* const weights = reinterpret_cast<Quad*>(shared_memory() + link_bytes(kTier));
    Quad* const operand = weights + division.shared_quads(kForm);
    Pair* const biases = reinterpret_cast<Pair*>(operand + (kThroughMemory ? 1 : 2) * quads);
    float* const params = reinterpret_cast<float*>(biases + kGates * team.units);
    float* const sums = params + params_floats(team, Cell::kParams);
    // kThroughMemory: h of the team's tiles, for one parity of the step and for the other.
    Quad* const shelf =
        static_cast<Quad*>(p.exchange) + (int64_t{d} * team.teams + me.team) * 2 * tiles * quads;

    const Scalar* w_hh = static_cast<const Scalar*>(p.weights[d]);
    const int padded_hidden = static_cast<int>(padded(hidden));
    const Product product(
        division, weights,
        [&](int group, int half, int lane_unit) -> const Scalar* {
          const int own = (group * kOctets + half / kGates) * 8 + lane_unit, unit = me.unit + own;
          if (own >= team.units || unit >= hidden) return nullptr;
          return w_hh + int64_t{half % kGates * hidden + unit} * padded_hidden;
        },
        [&](int k) { return k < padded_hidden ? k : -1; });

    // h0 in both buffers, because a row's first step may come at either parity.
    const Scalar* h0 =
        static_cast<const Scalar*>(p.step.states.initial[0]) + int64_t{d} * s.batch * s.hidden;
    for (int q = threadIdx.x; q < (kThroughMemory ? 1 : 2) * quads; q += kResidentThreads) {
      operand[q] = Quad{};
    }
    for (int i = threadIdx.x; i < kGates * team.units; i += kResidentThreads) {
      const int unit = me.unit + i % team.units;
      const int64_t at = i / team.units * s.hidden + unit;
      biases[i] = {};
      if (p.step.b_ih[d] && unit < hidden)
        biases[i] = {{Array<Scalar>(p.step.b_ih[d])[at], Array<Scalar>(p.step.b_hh[d])[at]}};
    }
    load_member_params<Cell, Scalar>(p.step, d, team.units, me.unit, params);
    __syncthreads();
    const auto put = [&](Quad* tile, int row, int64_t unit, Scalar value) {
      reinterpret_cast<Scalar*>(tile)[row * width + unit] = as_operand<kTensorCores>(value);
    };
    const int begin = kThroughMemory ? me.unit : 0;
    const int end = kThroughMemory ? min(me.unit + team.units, hidden) : hidden;
    for (int row = threadIdx.x / kWarp; row < tiles * team.rows; row += kResidentWarps) {
      if (me.batch + row >= s.batch) break;
      Quad* const tile = (kThroughMemory ? shelf : operand) + int64_t{row / kRows} * quads;
      const int64_t other = int64_t{kThroughMemory ? tiles : 1} * quads;
      const Moment first = moment_of(p.step, schedule.step_rows(0), d, me.batch + row);
      if (first.has() && first.from_zero()) continue;
#pragma unroll 8
      for (int k = begin + threadIdx.x % kWarp; k < end; k += kWarp) {
        const int64_t b = me.batch + row;
        const Scalar h = Storage<Scalar>::narrow(
            masked<Scalar>(p.step, d, b, k, Storage<Scalar>::widen(h0[b * s.hidden + k])));
        put(tile, row % kRows, k, h);
        put(tile + other, row % kRows, k, h);
      }
    }
    Link<kTier> link(p.arrivals, team, me, team.units / Product::kValues);
    link.begin();

    Update update[kEach][kUnits];
    Moments<kEach> moment;  // of the thread's rows, in the tile and the step that were loaded last
    // kept: the states of the step before are still here.
    const auto load = [&](const StepRows& step_rows, int tile, bool kept) {
      moment = {};
      const Uniform all(p.step, step_rows, batch);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int b = me.batch + tile * kRows + elements.row(i);
        if (elements.has(i) && b < batch)
          moment.add(i, all.is ? all.moment : moment_of(p.step, step_rows, d, b));
      }
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int b = me.batch + tile * kRows + elements.row(i);
        if (!moment[i].has()) continue;
#pragma unroll
        for (int k = 0; k < kUnits; ++k) {
          if (!elements.has_unit(k)) continue;
          const int unit = me.unit + elements.unit + k;
          Update& to = update[i][k];
          to.load_gates(p.step, step_rows, d, b, unit);
          if (!kept || !moment[i].from_before()) {
            to.load_states(p.step, step_rows, moment[i], d, b, unit);
            continue;
          }
#pragma unroll
          for (int state = 1; state < Cell::kStates; ++state) to.prev[state] = to.next[state];
          to.h = Storage<Scalar>::narrow(to.next[0]);
        }
      }
    };
    const auto save = [&](const StepRows& step_rows, int tile) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int b = me.batch + tile * kRows + elements.row(i);
        if (!moment[i].has()) continue;
#pragma unroll
        for (int k = 0; k < kUnits; ++k) {
          if (elements.has_unit(k))
            update[i][k].save(p.step, step_rows, moment[i], d, b, me.unit + elements.unit + k);
        }
      }
    };

    StepRows step_rows = schedule.step_rows(0);
    load(step_rows, 0, false);
    for (int position = 0; position < steps; ++position) {
      const bool last = position + 1 == steps;
      const int now = opaque(position % 2), then = 1 - now;
      for (int tile = 0; tile < tiles; ++tile) {
        const int rows = rows_of_tile(team.rows, step_rows.now.count, me.batch + tile * kRows);
        if (rows > 0) {
          const Quad* input = operand + now * quads;
          Quad* output = operand + then * quads;
          if constexpr (kThroughMemory) {
            output = shelf + (then * tiles + tile) * quads;
            input = operand;
            const Quad* from = shelf + (now * tiles + tile) * quads;
            for (int q = threadIdx.x; q < rows * stride; q += kResidentThreads) {
              operand[q] = load_fresh(from + q);
            }
            __syncthreads();
          }
          product.run(input, stride,
                      [&](int slice, int group, int half, int n, int unit, int pair, Pair sum) {
                        const int octet = group * kOctets + half / kGates;
                        float* to =
                            sums_of(sums, division, slice, octet, n) + half % kGates * kOctetFloats;
                        *reinterpret_cast<Pair*>(to + octet_slot(octet, unit, 2 * pair)) = sum;
                      });
          __syncthreads();
          // A second unit that does not exist is computed, and goes nowhere.
          Pair bias[kUnits][kGates];
          const int column = min(elements.unit, team.units - kUnits);
#pragma unroll
          for (int k = 0; k < kUnits; ++k) {
#pragma unroll
            for (int g = 0; g < kGates; ++g) bias[k][g] = biases[g * team.units + column + k];
          }
#pragma unroll
          for (int i = 0; i < kEach; ++i) {
            const int row = elements.row(i), unit = elements.unit;
            if (!moment[i].has()) continue;
            float total[kUnits][kGates] = {};
            const float* from[kUnits];
#pragma unroll
            for (int k = 0; k < kUnits; ++k) {
              from[k] = sums_of(sums, division, 0, unit / 8, row / 8) +
                        octet_slot(unit / 8, unit % 8 + k, row % 8);
            }
#pragma unroll 1
            for (int slice = 0; slice < division.slices; ++slice) {
#pragma unroll
              for (int k = 0; k < kUnits; ++k) {
#pragma unroll
                for (int g = 0; g < kGates; ++g) total[k][g] += from[k][g * kOctetFloats];
                from[k] += slice_floats;
              }
            }
#pragma unroll
            for (int k = 0; k < kUnits; ++k) {
              Update& of = update[i][k];
              for_each<Cell::kParams>(
                  [&](auto n) { of.params[n] = params[n * team.units + unit + k]; });
              of.compute(p.step, total[k], [&](int side, int g) { return bias[k][g].value[side]; });
            }
#pragma unroll
            for (int k = 0; k < kUnits; ++k) {
              if (last || !elements.has_unit(k)) continue;
              // As the output has it, masked.
              const int b = me.batch + tile * kRows + row;
              float h = moment[i].carried() ? update[i][k].next[0] : 0;
              if (p.step.operand_mask && moment[i].carried()) {
                h = masked<Scalar>(p.step, d, b, me.unit + unit + k,
                                   Storage<Scalar>::widen(Storage<Scalar>::narrow(h)));
              }
              put(output, row, me.unit + unit + k, Storage<Scalar>::narrow(h));
            }
          }
          if (!last) {
            link.publish(output + me.unit / Product::kValues, stride, rows);
          }
        }
        if (tiles > 1) {
          save(step_rows, tile);
          if (tile + 1 < tiles) load(step_rows, tile + 1, false);
        }
      }
      if (!last) link.arrive();
      if (tiles == 1) save(step_rows, 0);
      if (last) break;
      step_rows = {step_rows.now, step_rows.after, schedule[position + 2]};
      load(step_rows, 0, tiles == 1);
      link.wait();
    }
  }

 private:
  // The sums of a slice for eight rows and eight units: one gate after the other.
  __device__ __forceinline__ static float* sums_of(float* sums, const ProductLayout& layout,
                                                   int slice, int octet, int n) {
    const int octets = layout.groups * kOctets;
    return sums + ((slice * octets + octet) * kNs + n) * kGates * kOctetFloats;
  }
};

template <class Cell, class Scalar, bool kTensorCores, int kRows, Tier kTier>
__global__ void __launch_bounds__(kResidentThreads, 1)
    resident_forward_kernel(const __grid_constant__ ForwardSequence p) {
  if constexpr (kTier != Tier::kCluster || kHasClusters) {
    ResidentForward<Cell, Scalar, kTensorCores, kRows, kTier>::run(p);
  }
}

}  // namespace fastrnn::cuda
