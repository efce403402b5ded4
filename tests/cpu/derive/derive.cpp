// Derived cells beside those written by hand, and beside differences of their own forward.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>

#include "cells.h"

namespace {

using namespace fastrnn;

int failures = 0;

void expect(bool right, const char* cell, const char* what) {
  if (right) return;
  ++failures;
  std::printf("FAILED %s: %s\n", cell, what);
}

// A unit's values, all random.
template <class A, class Cell>
struct Unit {
  A x[kMostGates], h[kMostGates], prev[kMostStates], params[kMostParams], scalars[kMostScalars];
  A grad_next[kMostStates];

  explicit Unit(std::mt19937* random) {
    std::uniform_real_distribution<double> draw(-2, 2);
    for (A* list : {x, h, params})
      std::generate_n(list, kMostGates, [&] { return A(draw(*random)); });
    for (A* list : {prev, scalars, grad_next})
      std::generate_n(list, kMostStates, [&] { return A(draw(*random)); });
  }
  In<A> in() const { return {x, h, prev, params, scalars}; }
};

// What both passes of a cell give: states, then gradients of x, h, previous states, parameters.
template <class Cell, class A, class Of>
void run(const Unit<A, Of>& unit, A* out) {
  A saved[Cell::kSaved + 1], next[Cell::kStates];
  Cell::forward(unit.in(), next, saved);
  out = std::copy_n(next, Cell::kStates, out);
  A *const grad_x = out, *const grad_h = grad_x + Cell::kGates;
  A *const grad_prev = grad_h + Cell::kGates, *const grad_params = grad_prev + Cell::kStates;
  // As in the kernels, backward has no pre-activations.
  const In<A> in{nullptr, nullptr, unit.prev, unit.params, unit.scalars};
  Cell::backward(saved, in, next, unit.grad_next, grad_x, grad_h, grad_prev, grad_params);
}

template <class Cell>
constexpr int kResults = 2 * Cell::kStates + 2 * Cell::kGates + Cell::kParams;

template <class A, class Written, class Forward>
void compare(const char* name, double tolerance) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 1000; ++trial) {
    const Unit<A, Written> unit(&random);
    A written[kResults<Written>], made[kResults<Written>];
    run<Written>(unit, written);
    run<Derived<Forward>>(unit, made);
    bool same = true;
    for (int i = 0; i < kResults<Written>; ++i)
      same = same && std::fabs(double(written[i] - made[i])) <= tolerance;
    expect(same, name, "derived and written differ");
  }
}

// The gradients of a cell against central differences of the sum that its outputs make with
// grad_next.
template <class Forward>
void differentiate(const char* name) {
  using Cell = Derived<Forward>;
  using Values = Unit<double, Cell>;
  std::mt19937 random(11);
  int checked = 0;
  for (int trial = 0; trial < 200; ++trial) {
    Values unit(&random);
    double results[kResults<Cell>];
    run<Cell>(unit, results);
    const double* gradient = results + Cell::kStates;
    const auto total = [&] {
      double next[Cell::kStates], sum = 0;
      Forward::forward(unit.in(), next);
      for (int s = 0; s < Cell::kStates; ++s) sum += unit.grad_next[s] * next[s];
      return sum;
    };
    const auto check = [&](double* list, int count) {
      for (int i = 0; i < count; ++i, ++gradient) {
        const double value = list[i], step = 1e-6;
        double side[2];
        for (int k = 0; k < 2; ++k) {
          list[i] = value + (k ? step : -step);
          side[k] = total();
        }
        list[i] = value;
        const double middle = total(), slope = (side[1] - side[0]) / (2 * step);
        // Across the kink of a maximum the two sides differ.
        const double kink = (side[1] - 2 * middle + side[0]) / step;
        if (std::fabs(kink) > 1e-3) continue;
        ++checked;
        expect(std::fabs(slope - *gradient) <= 1e-6 * (1 + std::fabs(slope)), name, "gradient");
      }
    };
    check(unit.x, Cell::kGates);
    check(unit.h, Cell::kGates);
    check(unit.prev, Cell::kStates);
    check(unit.params, Cell::kParams);
  }
  expect(checked > 150 * (kResults<Cell> - Cell::kStates), name, "too few points were smooth");
}

}  // namespace

int main() {
  compare<double, Lstm, LstmForward>("LSTM", 1e-14);
  compare<double, Gru, GruForward>("GRU", 1e-14);
  compare<double, RnnTanh, TanhForward>("RNN_TANH", 1e-14);
  compare<double, RnnRelu, ReluForward>("RNN_RELU", 1e-14);
  compare<float, Lstm, LstmForward>("LSTM", 3e-6);
  compare<float, Gru, GruForward>("GRU", 3e-6);
  differentiate<LstmForward>("LSTM");
  differentiate<GruForward>("GRU");
  differentiate<Everything>("everything");
  std::printf("%d failures\n", failures);
  return failures > 0;
}
