// The layers that the driver runs: small random numbers, and every kind of schedule.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <string>

#include "../../../csrc/cpu/dispatch.h"
#include "naive.h"

// Whether the instruction set before this one has the same kernels for a type. This one is in use
// then.
inline bool repeats(const std::string& isa, fastrnn::Dtype dtype) {
  void (*before)(const fastrnn::cpu::ForwardParams&) = nullptr;
  for (const std::string& level : fastrnn::cpu::supported_isas()) {
    fastrnn::cpu::set_isa(level);
    const auto kernel = fastrnn::cpu::kernels(dtype, 1).forward;
    if (level == isa) return kernel == before;
    before = kernel;
  }
  return false;
}

struct Shape {
  int64_t T, B, I, H;
};

// Multiples of 1/64: exact in every format.
inline Values draw(std::mt19937* random, int64_t count, int most) {
  Values result(count);
  for (double& value : result)
    value = double(int((*random)() % unsigned(2 * most + 1)) - most) / 64;
  return result;
}

// NaN in the rows that do not exist.
inline void spoil_padding(const Layer& l, Values* values) {
  std::vector<bool> exists(l.outer_rows());
  for (int64_t t = 0; t < l.T; ++t) {
    for (int64_t b = 0; b < l.alive(t); ++b) exists[l.outer(t, b)] = true;
  }
  for (size_t i = 0; i < values->size(); ++i) {
    if (!exists[i * exists.size() / values->size()]) (*values)[i] = NAN;
  }
}

// What a call may say of time: the rows' places, resets, a direction; and c of every step.
struct Schedule {
  const char* name = "";
  bool order = false, resets = false, reverse = false, cells = false;
};

inline Layer make_layer(int cell, const Shape& s, int D, bool packed, bool projected, bool biases,
                        const Schedule& schedule) {
  std::mt19937 random(7);
  const int64_t R = projected ? (s.H + 1) / 2 : s.H, GH = kGateCount[cell] * s.H;
  Layer l{};
  l.cell = cell, l.T = s.T, l.B = s.B, l.I = s.I, l.H = s.H, l.R = R, l.D = D, l.offsets = {0};
  for (int64_t t = 0; t < s.T; ++t) {
    const int64_t ended = packed ? (s.B - 1) * t / s.T : 0;
    l.offsets.push_back(l.offsets.back() + s.B - ended);
  }
  for (int d = 0; d < D; ++d) {
    l.weights[d] = {draw(&random, GH * s.I, 24), draw(&random, GH * R, 24), {}, {}, {}};
    if (biases)
      l.weights[d].b_ih = draw(&random, GH, 24), l.weights[d].b_hh = draw(&random, GH, 24);
    if (projected) l.weights[d].w_hr = draw(&random, R * s.H, 24);
  }
  l.batch = s.B;
  l.forwards = schedule.reverse ? D - 1 : 1;
  if (schedule.order && s.B > 0) {
    l.batch = s.B + 2;
    l.order.resize(l.batch);
    std::iota(l.order.begin(), l.order.end(), 0);
    std::shuffle(l.order.begin(), l.order.end(), random);
    l.order.resize(s.B);
  }
  if (schedule.resets) {
    l.resets = std::make_unique<bool[]>(l.rows());
    for (int64_t row = 0; row < l.rows(); ++row) l.resets[row] = random() % 3 == 0;
  }
  const int64_t N = l.outer_rows(), states = D * l.batch;
  l.x = draw(&random, N * s.I, 64);
  l.h0 = draw(&random, states * R, 64);
  l.grad_output = draw(&random, N * D * R, 64);
  l.grad_hn = draw(&random, states * R, 64);
  if (cell == kLstm) {
    l.c0 = draw(&random, states * s.H, 64), l.grad_cn = draw(&random, states * s.H, 64);
    if (schedule.cells) l.grad_cells = draw(&random, N * D * s.H, 64);
  }
  spoil_padding(l, &l.x), spoil_padding(l, &l.grad_output), spoil_padding(l, &l.grad_cells);
  return l;
}
