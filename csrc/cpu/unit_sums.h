// Sums over rows of what backward gives each unit: gradients of gates, which are those of biases,
// and of the cell's parameters. They go over the rows of a step first, then over the steps, then
// over the batch slices: shorter sums, smaller error.
#pragma once

#include "layout.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// For `parts` vectors of units.
template <class Op>
class UnitSums {
  using A = Accumulate<typename Op::Storage>;
  using V = VecOf<typename Op::Storage>;
  static constexpr int W = V::kWidth;

 public:
  // Of the units of one block over the rows of one step.
  template <int kParts>
  struct Step {
    A sum[kParts * kMaxVecs * W] = {};

    FASTRNN_HD void add(int part, int u, V value) {
      A* const at = sum + (part * kMaxVecs + u) * W;
      (V::load(at) + value).store(at);
    }
  };

  // `sums` has (parts, padded units) for each of the batch slices, one after another.
  UnitSums(A* sums, const Blocks& units, int parts) : sums(sums), units(units), parts(parts) {}

  void clear(int64_t slice, Range blocks) const {
    for_vectors(blocks, [&](int64_t at, int64_t) { V(0).store(of(slice) + at); });
  }

  template <int kParts>
  void add(int64_t slice, int64_t block, const Step<kParts>& step) const {
    for (int part = 0; part < kParts; ++part) {
      for (int u = 0; u < units.vecs(block); ++u) {
        A* const at = of(slice) + part * units.padded() + units.unit(block, u);
        (V::load(at) + V::load(step.sum + (part * kMaxVecs + u) * W)).store(at);
      }
    }
  }

  // Those of a slice, (parts, padded units).
  A* of(int64_t slice) const { return sums + slice * parts * units.padded(); }

  // The total of all slices, (parts, units).
  void write(int64_t slices, Range blocks, A* out) const {
    for_vectors(blocks, [&](int64_t at, int64_t j) {
      V sum = V::load(of(0) + at);
      for (int64_t i = 1; i < slices; ++i) sum = sum + V::load(of(i) + at);
      store(out + at / units.padded() * units.units + j, VecOf<A>(sum), units.units - j);
    });
  }

 private:
  // Calls f(place in a slice's sums, first unit) for every vector of the blocks.
  template <class F>
  void for_vectors(Range blocks, const F& f) const {
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      for (int u = 0; u < units.vecs(block); ++u) {
        const int64_t j = units.unit(block, u);
        for (int part = 0; part < parts; ++part) f(part * units.padded() + j, j);
      }
    }
  }

  A* const sums;
  const Blocks& units;
  const int parts;
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
