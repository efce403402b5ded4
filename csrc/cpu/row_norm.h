// Layer normalisation of a row whose values a thread has all to itself.
#pragma once

#include "../cells/cell.h"
#include "storage.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// Of a row: its mean, and 1 / sqrt(variance + epsilon).
template <class A>
struct Moments {
  A mean, inverse;
};

// The lanes of a vector that hold units: all, or those before the end.
struct EveryLane {
  template <class V>
  FASTRNN_HD V operator()(V v) const {
    return v;
  }
};
template <class V>
struct FirstLanes {
  typename V::Bits there;

  FASTRNN_HD explicit FirstLanes(int64_t count) {
    typename V::Bits lane;
    for (int i = 0; i < V::kWidth; ++i) lane[i] = i;
    there = lane < decltype(lane[0] + 0)(count);
  }
  FASTRNN_HD V operator()(V v) const { return V((typename V::Raw)((typename V::Bits)v.v & there)); }
};

// Calls f(first unit, lanes) for every vector of a row of units. lanes(v) is v, with zeros,
// whatever stands there, past the last unit.
template <class V, class F>
FASTRNN_HD void for_lanes(int64_t units, const F& f) {
  int64_t j = 0;
  for (; j + V::kWidth <= units; j += V::kWidth) f(j, EveryLane());
  if (j < units) f(j, FirstLanes<V>(units - j));
}

template <class A, int kParts, class V>
FASTRNN_HD A total_of(const V (&sums)[kParts]) {
  V sum = sums[0];
  for (int i = 1; i < kParts; ++i) sum = sum + sums[i];
  return sum_of_lanes(sum);
}

// Of a row in which `kParts` vectors stand side by side for each vector of units. The mean comes
// first: the difference of two sums would cancel.
template <class V, int kParts, class A>
FASTRNN_HD Moments<A> moments(const A* row, int64_t units) {
  V sums[kParts], squares[kParts];
  for (int i = 0; i < kParts; ++i) sums[i] = squares[i] = V(A(0));
  for_lanes<V>(units, [&](int64_t j, const auto& lanes) {
    for_each<kParts>(
        [&](auto i) { sums[i] = sums[i] + lanes(V::load(row + j * kParts + i * V::kWidth)); });
  });
  const A count = A(kParts * units), mean = total_of<A>(sums) / count;
  for_lanes<V>(units, [&](int64_t j, const auto& lanes) {
    for_each<kParts>([&](auto i) {
      const V off = lanes(V::load(row + j * kParts + i * V::kWidth) - V(mean));
      squares[i] = multiply_add(off, off, squares[i]);
    });
  });
  const double variance = double(total_of<A>(squares)) / double(count);
  return {mean, A(1 / __builtin_sqrt(variance + kNormEpsilon))};
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
