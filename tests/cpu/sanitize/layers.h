// The layers that the drivers run: small random numbers, and every kind of schedule.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <string>

#include "../../../csrc/cells/cell_info.h"
#include "buffer.h"

struct Direction {
  Values w_ih, w_hh, b_ih, b_hh, w_hr;  // biases and w_hr may be empty
  std::vector<Values> params;
};

// With what LayerShape says of a call (params.h). What a cell or a call does not have is empty.
struct Layer {
  int cell;
  int64_t T, B, I, H, R;
  int D, forwards;
  std::vector<int64_t> offsets;
  int64_t batch;
  std::vector<int64_t> order;
  std::unique_ptr<bool[]> resets;
  Direction weights[2];
  Values x, h0, c0, grad_output, grad_hn, grad_cn, grad_cells;

  const fastrnn::CellInfo& info() const { return fastrnn::kCells[cell]; }
  int64_t rows() const { return offsets[T]; }
  int64_t outer_rows() const { return order.empty() ? rows() : T * batch; }

  // Which of the caller's rows exist, of all steps and of the states. Nobody writes the others.
  std::vector<bool> existing_rows() const {
    std::vector<bool> exist(outer_rows());
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t b = 0; b < offsets[t + 1] - offsets[t]; ++b)
        exist[order.empty() ? offsets[t] + b : t * batch + order[b]] = true;
    }
    return exist;
  }
  std::vector<bool> existing_states() const {
    std::vector<bool> exist(D * batch);
    for (int64_t i = 0; i < D * B; ++i)
      exist[i / B * batch + (order.empty() ? i % B : order[i % B])] = true;
    return exist;
  }
};

// Whether value i of so many belongs to a row that exists.
inline bool exists(const std::vector<bool>& rows, size_t i, size_t values) {
  return rows[i * rows.size() / values];
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

// What a call may say of time: the rows' places, resets, a direction; and c of every step.
struct Schedule {
  const char* name = "";
  bool order = false, resets = false, reverse = false, cells = false;
};

inline Layer make_layer(int cell, const Shape& s, int D, bool packed, bool projected, bool biases,
                        const Schedule& schedule) {
  std::mt19937 random(7);
  const fastrnn::CellInfo& info = fastrnn::kCells[cell];
  const int64_t R = projected ? (s.H + 1) / 2 : s.H, GH = info.gates * s.H;
  Layer l{};
  l.cell = cell, l.T = s.T, l.B = s.B, l.I = s.I, l.H = s.H, l.R = R, l.D = D, l.offsets = {0};
  for (int64_t t = 0; t < s.T; ++t) {
    const int64_t ended = packed ? (s.B - 1) * t / s.T : 0;
    l.offsets.push_back(l.offsets.back() + s.B - ended);
  }
  for (int d = 0; d < D; ++d) {
    Direction& w = l.weights[d];
    w.w_ih = draw(&random, GH * s.I, 24), w.w_hh = draw(&random, GH * R, 24);
    if (biases) w.b_ih = draw(&random, GH, 24), w.b_hh = draw(&random, GH, 24);
    if (projected) w.w_hr = draw(&random, R * s.H, 24);
    for (int k = 0; k < info.params; ++k)
      w.params.push_back(draw(&random, info.param_rows(k) * s.H, 64));
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
  const int64_t states = D * l.batch;
  const std::vector<bool> rows = l.existing_rows();
  // NaN in the rows that do not exist.
  const auto draw_rows = [&](int64_t width) {
    Values values = draw(&random, l.outer_rows() * width, 64);
    for (size_t i = 0; i < values.size(); ++i)
      if (!exists(rows, i, values.size())) values[i] = NAN;
    return values;
  };
  l.x = draw_rows(s.I), l.grad_output = draw_rows(D * R);
  l.h0 = draw(&random, states * R, 64), l.grad_hn = draw(&random, states * R, 64);
  if (info.states > 1) {
    l.c0 = draw(&random, states * s.H, 64), l.grad_cn = draw(&random, states * s.H, 64);
    if (schedule.cells) l.grad_cells = draw_rows(D * s.H);
  }
  return l;
}
