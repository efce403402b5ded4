// A whole cell (cell.h) from its names and its forward. Everything is decided while it compiles;
// what runs is straight-line code on registers.
#pragma once

#include "graph.h"

namespace fastrnn {

template <class Cell>
struct Derived : Counted<Cell> {
  using Counts = Counted<Cell>;
  static constexpr int G = Counts::kGates, S = Counts::kStates, P = Counts::kParams;
  static constexpr Graph kGraph = trace<Cell>();
  static constexpr BackwardPlan kPlan = plan_backward(kGraph, G, S);
  static constexpr int kNodes = kGraph.count;

  static constexpr int kSaved = kPlan.saved;
  static constexpr bool kSharedGateGrad = kPlan.shared, kDirectGrad = kPlan.direct;
  static constexpr unsigned kBackwardPrev = kPlan.prev, kBackwardNext = kPlan.next;
  static constexpr bool kReadsH = kPlan.reads_h, kSavedReadsState = kPlan.saved_reads_state;

  template <class A>
  static FASTRNN_HD void forward(const In<A>& in, A* next, A* saved) {
    A v[kNodes];
    for_each<kNodes>([&](auto n) { forward_one<n>(in, v); });
    for_each<S>([&](auto s) {
      constexpr int n = kGraph.next[s];
      next[s] = v[n];
    });
    for_each<kNodes>([&](auto n) {
      constexpr int slot = kPlan.slot[n];
      if constexpr (slot >= 0) saved[slot] = v[n];
    });
  }

  template <class A>
  static FASTRNN_HD void backward(const A* saved, const In<A>& in, const A* next,
                                  const A* grad_next, A* grad_x, A* grad_h, A* grad_prev,
                                  A* grad_params) {
    A v[kNodes], grad[kNodes];
    for_each<kNodes>([&](auto n) { load_one<n>(saved, in, next, v); });
    for_each<kNodes>([&](auto n) { pull_one<kNodes - 1 - n>(v, grad_next, grad); });
    for_each<G>([&](auto g) { grad_x[g] = gradient<g>(grad); });
    for_each<G>([&](auto g) { grad_h[g] = gradient<G + g>(grad); });
    for_each<S>([&](auto s) { grad_prev[s] = gradient<2 * G + s>(grad); });
    for_each<P>([&](auto p) { grad_params[p] = gradient<2 * G + S + p>(grad); });
  }

 private:
  // nvcc knows kGraph and kPlan in constant expressions alone: hence the constexpr locals.
  template <int n, class A>
  static FASTRNN_HD void compute(A* v) {
    constexpr Node node = kGraph.node[n];
    if constexpr (node.op == Op::kConst) v[n] = A(node.value);
    if constexpr (node.op == Op::kAdd) v[n] = v[node.a] + v[node.b];
    if constexpr (node.op == Op::kSub) v[n] = v[node.a] - v[node.b];
    if constexpr (node.op == Op::kMul) v[n] = v[node.a] * v[node.b];
    if constexpr (node.op == Op::kDiv) v[n] = quotient(v[node.a], v[node.b]);
    if constexpr (node.op == Op::kMax) v[n] = max_(v[node.a], v[node.b]);
    if constexpr (node.op == Op::kLarger) v[n] = is_larger(v[node.a], v[node.b]);
    if constexpr (node.op == Op::kSigmoid) v[n] = sigmoid_(v[node.a]);
    if constexpr (node.op == Op::kTanh) v[n] = tanh_(v[node.a]);
    if constexpr (node.op == Op::kRelu) v[n] = relu_(v[node.a]);
    if constexpr (node.op == Op::kExp) v[n] = exp_(v[node.a]);
    if constexpr (node.op == Op::kLog) v[n] = log_(v[node.a]);
    if constexpr (node.op == Op::kLogSigmoid) v[n] = log_sigmoid_(v[node.a]);
  }

  template <int n, class A>
  static FASTRNN_HD void forward_one(const In<A>& in, A* v) {
    constexpr Node node = kGraph.node[n];
    if constexpr (node.op == Op::kX) v[n] = in.x[node.a];
    if constexpr (node.op == Op::kH) v[n] = in.h[node.a];
    if constexpr (node.op == Op::kPrev) v[n] = in.prev[node.a];
    if constexpr (node.op == Op::kParam) v[n] = in.params[node.a];
    if constexpr (node.op == Op::kScalar) v[n] = in.scalars[node.a];
    compute<n>(v);
  }

  template <int n, class A>
  static FASTRNN_HD void load_one(const A* saved, const In<A>& in, const A* next, A* v) {
    constexpr Node node = kGraph.node[n];
    constexpr int slot = kPlan.slot[n], state = kPlan.state[n];
    constexpr bool used = kPlan.used[n];
    if constexpr (!used) {
      return;
    } else if constexpr (slot >= 0) {
      v[n] = saved[slot];
    } else if constexpr (state >= 0) {
      v[n] = next[state];
    } else if constexpr (node.op == Op::kPrev) {
      v[n] = in.prev[node.a];
    } else if constexpr (node.op == Op::kParam) {
      v[n] = in.params[node.a];
    } else if constexpr (node.op == Op::kScalar) {
      v[n] = in.scalars[node.a];
    } else {
      compute<n>(v);
    }
  }

  // The gradient that node c passes on to its first operand, or to the second.
  template <int c, bool kFirst, class A>
  static FASTRNN_HD A passed(const A* v, const A* grad) {
    constexpr Node node = kGraph.node[c];
    if constexpr (node.op == Op::kAdd) return grad[c];
    if constexpr (node.op == Op::kSub) return kFirst ? grad[c] : A(0) - grad[c];
    if constexpr (node.op == Op::kMul) return grad[c] * v[kFirst ? node.b : node.a];
    if constexpr (node.op == Op::kDiv && kFirst) return quotient(grad[c], v[node.b]);
    if constexpr (node.op == Op::kDiv && !kFirst) return A(0) - quotient(grad[c] * v[c], v[node.b]);
    // Chosen, not multiplied: what is infinite does not reach the side that was not taken.
    if constexpr (node.op == Op::kMax)
      return relu_backward(grad[c], kFirst ? v[node.larger] : A(1) - v[node.larger]);
    if constexpr (node.op == Op::kSigmoid) return grad[c] * dsigmoid(v[c]);
    if constexpr (node.op == Op::kTanh) return grad[c] * dtanh(v[c]);
    if constexpr (node.op == Op::kRelu) return relu_backward(grad[c], v[c]);
    if constexpr (node.op == Op::kExp) return grad[c] * v[c];
    if constexpr (node.op == Op::kLog) return quotient(grad[c], v[node.a]);
    if constexpr (node.op == Op::kLogSigmoid) return grad[c] * dlog_sigmoid(v[c]);
  }

  template <bool kFirst, class A>
  static FASTRNN_HD void give(A* to, A value) {
    *to = kFirst ? value : *to + value;
  }

  // Adds what the consumers of n from kFrom on pass on to it.
  template <int n, int kFrom, bool kNone, class A>
  static FASTRNN_HD void pull(const A* v, A* grad) {
    constexpr int c = consumer(kGraph, kPlan, n, kFrom);
    if constexpr (c < kNodes) {
      constexpr Node node = kGraph.node[c];
      constexpr bool first = node.a == n, second = is_binary(node.op) && node.b == n;
      if constexpr (first) give<kNone>(grad + n, passed<c, true>(v, grad));
      if constexpr (second) give<kNone && !first>(grad + n, passed<c, false>(v, grad));
      pull<n, c + 1, false>(v, grad);
    }
  }
  template <int n, class A>
  static FASTRNN_HD void pull_one(const A* v, const A* grad_next, A* grad) {
    constexpr bool flows = kPlan.flows[n];
    if constexpr (flows) {
      for_each<S>([&](auto s) {
        constexpr bool here = kGraph.next[s] == n, none = states_before(n, s) == 0;
        if constexpr (here) give<none>(grad + n, grad_next[s]);
      });
      pull<n, n + 1, states_before(n, S) == 0>(v, grad);
    }
  }
  // How many of the first states are node n.
  static constexpr int states_before(int n, int state) {
    int count = 0;
    for (int s = 0; s < state; ++s) count += kGraph.next[s] == n;
    return count;
  }

  template <int n, class A>
  static FASTRNN_HD A gradient(const A* grad) {
    constexpr bool flows = kPlan.flows[n];
    if constexpr (flows) return grad[n];
    return A(0);
  }
};

}  // namespace fastrnn
