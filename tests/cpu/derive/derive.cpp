// Derived cells beside those written by hand.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>

#include "cells.h"

namespace {

using namespace fastrnn;

int failures = 0;

// A unit's values, random but for the scalars.
template <class A>
struct Unit {
  A x[kMostGates], h[kMostGates], prev[kMostStates], params[kMostParams], scalars[kMostScalars];
  A grad_next[kMostStates];

  explicit Unit(std::mt19937* random) {
    std::uniform_real_distribution<double> draw(-2, 2);
    for (A* list : {x, h, params})
      std::generate_n(list, kMostGates, [&] { return A(draw(*random)); });
    for (A* list : {prev, grad_next})
      std::generate_n(list, kMostStates, [&] { return A(draw(*random)); });
    std::fill_n(scalars, kMostScalars, A(0.5));
  }
  In<A> in() const { return {x, h, prev, params, scalars}; }
};

// What both passes of a cell give: states, then gradients of x, h, previous states, parameters.
template <class Cell, class A>
void run(const Unit<A>& unit, A* out) {
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
    const Unit<A> unit(&random);
    A written[kResults<Written>], made[kResults<Written>];
    run<Written>(unit, written);
    run<Derived<Forward>>(unit, made);
    bool same = true;
    for (int i = 0; i < kResults<Written>; ++i)
      same = same && std::fabs(double(written[i] - made[i])) <= tolerance;
    if (same) continue;
    ++failures;
    std::printf("FAILED %s: derived and written differ\n", name);
  }
}

}  // namespace

int main() {
  compare<double, Lstm, LstmForward>("LSTM", 1e-14);
  compare<double, Gru, GruForward>("GRU", 1e-14);
  compare<double, RnnTanh, TanhForward>("RNN_TANH", 1e-14);
  compare<double, RnnRelu, ReluForward>("RNN_RELU", 1e-14);
  compare<float, Lstm, LstmForward>("LSTM", 3e-6);
  compare<float, Gru, GruForward>("GRU", 3e-6);
  compare<double, Derived<Halved<false>>, Halved<true>>("a scalar", 1e-14);
  std::printf("%d failures\n", failures);
  return failures > 0;
}
