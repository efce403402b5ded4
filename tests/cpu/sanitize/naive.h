// The layers as plain loops in double, straight from their equations; nothing is shared with
// csrc/cells.
#pragma once

#include <cmath>
#include <memory>
#include <vector>

#include "../../../csrc/cpu/params.h"

using Values = std::vector<double>;

enum CellKind { kLstm, kGru, kTanh, kRelu };
constexpr int kGateCount[] = {4, 3, 1, 1}, kSavedCount[] = {4, 4, 0, 0},
              kGradCopies[] = {1, 2, 1, 1};

struct Direction {
  Values w_ih, w_hh, b_ih, b_hh, w_hr;  // biases and w_hr may be empty
};

struct Layer {
  int cell;
  int64_t T, B, I, H, R;
  int D;
  std::vector<int64_t> offsets;
  Direction weights[2];
  Values x, h0, c0, grad_output, grad_hn, grad_cn;
  // With what the options of a call bring along.
  int64_t batch;
  std::vector<int64_t> order;
  std::unique_ptr<bool[]> resets;
  int forwards;
  Values grad_cells;

  int64_t rows() const { return offsets[T]; }
  int64_t alive(int64_t t) const { return offsets[t + 1] - offsets[t]; }
  int64_t outer_rows() const { return order.empty() ? rows() : T * batch; }
  int64_t outer(int64_t t, int64_t b) const {
    return order.empty() ? offsets[t] + b : t * batch + order[b];
  }
  int64_t state(int d, int64_t b) const { return d * batch + (order.empty() ? b : order[b]); }
  bool backwards(int d) const { return d >= forwards; }
  // Whether a reset lies between the step that row b takes before step t and t itself.
  bool cut(int d, int64_t t, int64_t b) const {
    if (!resets) return false;
    if (!backwards(d)) return resets[offsets[t] + b];
    return t + 1 < T && b < alive(t + 1) && resets[offsets[t + 1] + b];
  }
};

// Everything forward and backward are to compute; shapes as in csrc/cpu/params.h. NaN stands for
// what nobody may write.
struct Truth {
  Values output, hn, cn, cell_sequence, grad_gates, grad_bias, grad_h0, grad_c0, grad_h;
};

inline double logistic(double x) { return 1 / (1 + std::exp(-x)); }

// One batch row in one direction: its steps in the order of the direction, and what each left
// behind.
struct Row {
  struct Step {
    int64_t row, outer;     // among those that exist, and where the caller has it
    bool cut;               // the state before it does not come from the step before
    Values x_part, h_part;  // (G * H) pre-activations
    Values h_before, c_before, h_raw, c, h;
  };
  std::vector<Step> steps;
};

inline Values affine(const Values& w, const Values& b, const double* v, int64_t out, int64_t in) {
  Values result(out);
  for (int64_t o = 0; o < out; ++o) {
    result[o] = b.empty() ? 0 : b[o];
    for (int64_t i = 0; i < in; ++i) result[o] += w[o * in + i] * v[i];
  }
  return result;
}

inline Row steps_of(const Layer& l, int d, int64_t b) {
  const Direction& w = l.weights[d];
  const int64_t H = l.H, GH = kGateCount[l.cell] * H;
  Row result;
  const double* h0 = l.h0.data() + l.state(d, b) * l.R;
  Values h(h0, h0 + l.R), c(H, 0);
  if (l.cell == kLstm) c.assign(&l.c0[l.state(d, b) * H], &l.c0[l.state(d, b) * H] + H);
  for (int64_t e = 0; e < l.T; ++e) {
    const int64_t t = l.backwards(d) ? l.T - 1 - e : e;
    if (b >= l.alive(t)) continue;
    Row::Step s;
    s.row = l.offsets[t] + b;
    s.outer = l.outer(t, b);
    s.cut = l.cut(d, t, b);
    if (s.cut) h.assign(l.R, 0), c.assign(H, 0);
    s.x_part = affine(w.w_ih, w.b_ih, l.x.data() + s.outer * l.I, GH, l.I);
    s.h_part = affine(w.w_hh, w.b_hh, h.data(), GH, l.R);
    s.h_before = h, s.c_before = c;
    s.h_raw.resize(H);
    for (int64_t j = 0; j < H; ++j) {
      const auto sum = [&](int g) { return s.x_part[g * H + j] + s.h_part[g * H + j]; };
      if (l.cell == kLstm) {
        c[j] = logistic(sum(1)) * c[j] + logistic(sum(0)) * std::tanh(sum(2));
        s.h_raw[j] = logistic(sum(3)) * std::tanh(c[j]);
      } else if (l.cell == kGru) {
        const double z = logistic(sum(1));
        const double n = std::tanh(s.x_part[2 * H + j] + logistic(sum(0)) * s.h_part[2 * H + j]);
        s.h_raw[j] = (1 - z) * n + z * s.h_before[j];
      } else {
        s.h_raw[j] = l.cell == kTanh ? std::tanh(sum(0)) : std::fmax(sum(0), 0);
      }
    }
    h = w.w_hr.empty() ? s.h_raw : affine(w.w_hr, {}, s.h_raw.data(), l.R, H);
    s.c = c, s.h = h;
    result.steps.push_back(s);
  }
  return result;
}

// Gradients through one cell update: (gate gradients on the x side, on the h side), and dh, dc
// turned from what reaches the states after the step into what reaches those before it, without the
// part through w_hh.
inline void cell_gradient(const Layer& l, const Row::Step& s, const Values& output, int d,
                          Values* dh, Values* dc, double* gx, double* gh) {
  const int64_t H = l.H;
  for (int64_t j = 0; j < H; ++j) {
    const auto sum = [&](int g) { return s.x_part[g * H + j] + s.h_part[g * H + j]; };
    const double up = (*dh)[j];
    if (l.cell == kLstm) {
      const double i = logistic(sum(0)), f = logistic(sum(1)), g = std::tanh(sum(2)),
                   o = logistic(sum(3));
      const double tc = std::tanh(s.c[j]), down = (*dc)[j] + up * o * (1 - tc * tc);
      gx[j] = down * g * i * (1 - i);
      gx[H + j] = down * s.c_before[j] * f * (1 - f);
      gx[2 * H + j] = down * i * (1 - g * g);
      gx[3 * H + j] = up * tc * o * (1 - o);
      for (int k = 0; k < 4; ++k) gh[k * H + j] = gx[k * H + j];
      (*dc)[j] = down * f, (*dh)[j] = 0;
    } else if (l.cell == kGru) {
      const double r = logistic(sum(0)), z = logistic(sum(1)), q = s.h_part[2 * H + j];
      const double n = std::tanh(s.x_part[2 * H + j] + r * q), dn = up * (1 - z) * (1 - n * n);
      gx[j] = gh[j] = dn * q * r * (1 - r);
      gx[H + j] = gh[H + j] = up * (s.h_before[j] - n) * z * (1 - z);
      gx[2 * H + j] = dn, gh[2 * H + j] = dn * r;
      (*dh)[j] = up * z;
    } else {
      // Near the kink rounding decides which side of relu counts: follow the output that was given.
      const double h = l.cell == kTanh ? s.h_raw[j] : output[(s.outer * l.D + d) * l.R + j];
      gx[j] = gh[j] = up * (l.cell == kTanh ? 1 - h * h : h > 0 ? 1 : 0);
      (*dh)[j] = 0;
    }
  }
}

inline void naive_forward(const Layer& l, Truth* out) {
  const bool lstm = l.cell == kLstm;
  out->output.assign(l.outer_rows() * l.D * l.R, NAN);
  out->hn.assign(l.D * l.batch * l.R, NAN);
  out->cn.assign(lstm ? l.D * l.batch * l.H : 0, NAN);
  out->cell_sequence.assign(lstm ? l.outer_rows() * l.D * l.H : 0, NAN);
  for (int d = 0; d < l.D; ++d) {
    for (int64_t b = 0; b < l.B; ++b) {
      const Row row = steps_of(l, d, b);
      for (const Row::Step& s : row.steps) {
        const int64_t at = s.outer * l.D + d;
        for (int64_t j = 0; j < l.R; ++j) out->output[at * l.R + j] = s.h[j];
        for (int64_t j = 0; lstm && j < l.H; ++j) out->cell_sequence[at * l.H + j] = s.c[j];
      }
      const int64_t state = l.state(d, b);
      for (int64_t j = 0; j < l.R; ++j) out->hn[state * l.R + j] = row.steps.back().h[j];
      for (int64_t j = 0; lstm && j < l.H; ++j) out->cn[state * l.H + j] = row.steps.back().c[j];
    }
  }
}

// `output` is what the tested forward gave, for relu.
inline void naive_backward(const Layer& l, const Values& output, Truth* out) {
  const int64_t H = l.H, R = l.R, GH = kGateCount[l.cell] * H, E = kGradCopies[l.cell],
                N = l.rows();
  out->grad_gates.assign(l.D * N * E * GH, 0);
  out->grad_bias.assign(l.D * E * GH, 0);
  out->grad_h0.assign(l.D * l.batch * R, NAN);
  out->grad_c0.assign(l.cell == kLstm ? l.D * l.batch * H : 0, NAN);
  out->grad_h.assign(R != H ? l.D * N * R : 0, 0);
  for (int d = 0; d < l.D; ++d) {
    const Direction& w = l.weights[d];
    for (int64_t b = 0; b < l.B; ++b) {
      const Row row = steps_of(l, d, b);
      const int64_t state = l.state(d, b);
      const double* hn = l.grad_hn.data() + state * R;
      Values dh(hn, hn + R), dc(H, 0);
      if (l.cell == kLstm) dc.assign(&l.grad_cn[state * H], &l.grad_cn[state * H] + H);
      for (auto s = row.steps.rbegin(); s != row.steps.rend(); ++s) {
        const int64_t at = s->outer * l.D + d;
        for (int64_t j = 0; j < R; ++j) dh[j] += l.grad_output[at * R + j];
        for (int64_t j = 0; !l.grad_cells.empty() && j < H; ++j) dc[j] += l.grad_cells[at * H + j];
        Values raw = dh;
        if (R != H) {
          for (int64_t r = 0; r < R; ++r) out->grad_h[(d * N + s->row) * R + r] = dh[r];
          raw.assign(H, 0);
          for (int64_t r = 0; r < R; ++r) {
            for (int64_t j = 0; j < H; ++j) raw[j] += w.w_hr[r * H + j] * dh[r];
          }
        }
        Values gx(GH), gh(GH);
        cell_gradient(l, *s, output, d, &raw, &dc, gx.data(), gh.data());
        for (int64_t o = 0; o < GH; ++o) {
          for (int64_t e = 0; e < E; ++e) {
            const double grad = e ? gh[o] : gx[o];
            out->grad_gates[((d * N + s->row) * E + e) * GH + o] = grad;
            out->grad_bias[(d * E + e) * GH + o] += grad;
          }
        }
        dh = R != H ? Values(R, 0) : raw;
        for (int64_t o = 0; o < GH; ++o) {
          for (int64_t r = 0; r < R; ++r) dh[r] += gh[o] * w.w_hh[o * R + r];
        }
        if (s->cut) dh.assign(R, 0), dc.assign(H, 0);
      }
      for (int64_t j = 0; j < R; ++j) out->grad_h0[state * R + j] = dh[j];
      if (l.cell != kLstm) continue;
      for (int64_t j = 0; j < H; ++j) out->grad_c0[state * H + j] = dc[j];
    }
  }
}
