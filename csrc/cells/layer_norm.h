// LSTM and GRU with layer normalisation (Ba et al. 2016), whose statistics are over all gates of a
// row: LSTM's equations with x = N(W_ih x_t), h = N(W_hh h_prev) and h' = o tanh(N(c')), GRU's with
// the same x and h. The kernels normalise (cell.h).
#pragma once

#include "gru.h"
#include "lstm.h"

namespace fastrnn {

struct LayerNormLstmNames : LstmNames {
  static constexpr const char* kParams[] = {"weight_norm_ih", "weight_norm_hh", "weight_norm_c",
                                            "bias_norm_c"};
  static constexpr int kNorms = 3;
};

struct LayerNormLstm : Counted<LayerNormLstmNames> {
  static constexpr int kSaved = 4;                // i f g o, after their activations
  static constexpr bool kSharedGateGrad = false;  // those of the products differ
  static constexpr bool kDirectGrad = false;
  static constexpr unsigned kBackwardPrev = 1u << 1;
  static constexpr unsigned kBackwardNext = 1u << 1;
  static constexpr bool kReadsH = false;
  static constexpr bool kSavedReadsState = false;

  template <class A>
  static FASTRNN_HD void forward(const In<A>& in, A* next, A* saved) {
    Lstm::forward(in, next, saved);
    next[0] = saved[3];
  }

  template <class A>
  static FASTRNN_HD A emit(A o, A u, const A* params) {
    return o * tanh_(u * params[0] + params[1]);
  }

  template <class A>
  static FASTRNN_HD void emit_backward(A o, A u, const A* params, A grad_h, A* grad_o, A* grad_u,
                                       A* grad_params) {
    const A tanh_c = tanh_(u * params[0] + params[1]);
    const A grad = grad_h * o * dtanh(tanh_c);
    *grad_o = grad_h * tanh_c;
    *grad_u = grad * params[0];
    grad_params[0] = grad * u;
    grad_params[1] = grad;
  }

  template <class A>
  static FASTRNN_HD void backward(const A* saved, const In<A>& in, const A* /*next*/,
                                  const A* grad_next, A* grad_x, A* grad_h, A* grad_prev,
                                  A* /*grad_params*/) {
    const A i = saved[0], f = saved[1], g = saved[2], o = saved[3], dc = grad_next[1];
    grad_x[0] = dc * g * dsigmoid(i);
    grad_x[1] = dc * in.prev[1] * dsigmoid(f);
    grad_x[2] = dc * i * dtanh(g);
    grad_x[3] = grad_next[0] * dsigmoid(o);
    for (int k = 0; k < kGates; ++k) grad_h[k] = grad_x[k];
    grad_prev[0] = A(0);
    grad_prev[1] = dc * f;
  }
};

struct LayerNormGruNames : GruNames {
  static constexpr const char* kParams[] = {"weight_norm_ih", "weight_norm_hh"};
  static constexpr int kNorms = 2;
};

struct LayerNormGru : GruOf<LayerNormGruNames> {};

}  // namespace fastrnn
