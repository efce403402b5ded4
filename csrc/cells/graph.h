// What a cell's forward does, as data: recorded while it compiles, by running forward once on
// symbols. From this follow what backward needs and where that comes from; derive.h executes both.
#pragma once

#include "cell.h"

namespace fastrnn {

enum class Op {
  kX,  // leaves, whose `a` is the position in a list of In
  kH,
  kPrev,
  kParam,
  kScalar,
  kConst,
  kAdd,  // of a and b
  kSub,
  kMul,
  kDiv,
  kMax,
  kLarger,
  kSigmoid,  // of a
  kTanh,
  kRelu,
  kExp,
  kLog,
  kLogSigmoid,
};
// As Python knows them.
constexpr const char* kOpNames[] = {"x",       "h",    "prev", "param", "scalar", "const",
                                    "add",     "sub",  "mul",  "div",   "max",    "larger",
                                    "sigmoid", "tanh", "relu", "exp",   "log",    "log_sigmoid"};
constexpr bool is_leaf(Op op) { return op <= Op::kConst; }
constexpr bool is_binary(Op op) { return op >= Op::kAdd && op <= Op::kLarger; }

struct Node {
  Op op = Op::kConst;
  int a = -1, b = -1;
  double value = 0;  // of a constant
  // Of kMax: the node that says whether a > b. A value of its own, because a derivative has to take
  // the side that forward took, which 16-bit copies of a and b may not tell.
  int larger = -1;
};

constexpr int kMostNodes = 96;

struct Graph {
  Node node[kMostNodes] = {};
  int count = 0;
  int next[kMostStates] = {};

  // The same operation on the same values is the same node.
  constexpr int add(const Node& n) {
    for (int i = 0; i < count; ++i) {
      const Node& o = node[i];
      if (o.op == n.op && o.a == n.a && o.b == n.b && o.value == n.value) return i;
    }
    if (count == kMostNodes) throw "a cell's forward has more than kMostNodes operations";
    node[count] = n;
    return count++;
  }
};

// A value while forward is recorded; a constant belongs to no graph yet.
struct Symbol {
  Graph* graph = nullptr;
  int id = -1;
  double value = 0;

  constexpr Symbol() = default;
  constexpr explicit Symbol(double value) : value(value) {}
  constexpr Symbol(Graph* graph, int id) : graph(graph), id(id) {}
  constexpr int in(Graph* g) const { return graph ? id : g->add({Op::kConst, -1, -1, value}); }
};

constexpr Symbol record(Op op, const Symbol& a, const Symbol& b) {
  Graph* const g = a.graph ? a.graph : b.graph;
  if (!g) throw "an operation on two constants: write its result instead";
  const int left = a.in(g), right = b.in(g);
  const int larger = op == Op::kMax ? g->add({Op::kLarger, left, right}) : -1;
  return {g, g->add({op, left, right, 0, larger})};
}
constexpr Symbol record(Op op, const Symbol& a) {
  if (!a.graph) throw "a function of a constant: write its result instead";
  return {a.graph, a.graph->add({op, a.id})};
}

constexpr Symbol operator+(Symbol a, Symbol b) { return record(Op::kAdd, a, b); }
constexpr Symbol operator-(Symbol a, Symbol b) { return record(Op::kSub, a, b); }
constexpr Symbol operator*(Symbol a, Symbol b) { return record(Op::kMul, a, b); }
constexpr Symbol quotient(Symbol a, Symbol b) { return record(Op::kDiv, a, b); }
constexpr Symbol max_(Symbol a, Symbol b) { return record(Op::kMax, a, b); }
constexpr Symbol sigmoid_(Symbol a) { return record(Op::kSigmoid, a); }
constexpr Symbol tanh_(Symbol a) { return record(Op::kTanh, a); }
constexpr Symbol relu_(Symbol a) { return record(Op::kRelu, a); }
constexpr Symbol exp_(Symbol a) { return record(Op::kExp, a); }
constexpr Symbol log_(Symbol a) { return record(Op::kLog, a); }
constexpr Symbol log_sigmoid_(Symbol a) { return record(Op::kLogSigmoid, a); }

// Leaves come first, in the order of In.
template <class Cell>
constexpr Graph trace() {
  using Counts = Counted<Cell>;
  Graph g;
  // No longer than their lists, or by an entry before them where a list may be empty: what forward
  // reads or sets beyond is no constant expression.
  Symbol x[Counts::kGates], h[Counts::kGates], prev[Counts::kStates], next[Counts::kStates];
  Symbol params[1 + Counts::kParams], scalars[1 + Counts::kScalars];
  const auto leaves = [&](Op op, int count, Symbol* out) {
    for (int i = 0; i < count; ++i) out[i] = {&g, g.add({op, i})};
  };
  leaves(Op::kX, Counts::kGates, x);
  leaves(Op::kH, Counts::kGates, h);
  leaves(Op::kPrev, Counts::kStates, prev);
  leaves(Op::kParam, Counts::kParams, params + 1);
  leaves(Op::kScalar, Counts::kScalars, scalars + 1);
  Cell::forward(In<Symbol>{x, h, prev, params + 1, scalars + 1}, next);
  for (int s = 0; s < Counts::kStates; ++s) {
    if (!next[s].graph) throw "a cell's forward must set every state";
    g.next[s] = next[s].id;
  }
  return g;
}

// How to go back: which values derivatives read, and where those come from.
struct BackwardPlan {
  bool active[kMostNodes] = {};  // depends on something that gets a gradient
  bool flows[kMostNodes] = {};   // and gets a gradient itself
  bool used[kMostNodes] = {};    // its value is read
  int state[kMostNodes] = {};    // the state that it is after the step, or -1
  int slot[kMostNodes] = {};     // among the saved values, or -1
  int saved = 0;
  unsigned prev = 0, next = 0;  // states that are read
  bool shared = true, direct = false, reads_h = false, saved_reads_state = false;
};

constexpr void mark_used(const Graph& g, BackwardPlan* p, int n) {
  if (p->used[n]) return;
  p->used[n] = true;
  const Node& node = g.node[n];
  if (p->slot[n] >= 0) return;
  if (node.op == Op::kPrev) p->prev |= 1u << node.a;
  if (p->state[n] >= 0) p->next |= 1u << p->state[n];
  if (p->state[n] >= 0 || is_leaf(node.op)) return;
  mark_used(g, p, node.a);
  if (is_binary(node.op)) mark_used(g, p, node.b);
}

constexpr void mark_flow(const Graph& g, BackwardPlan* p, bool* needed) {
  for (int n = g.count - 1; n >= 0; --n) {
    const Node& node = g.node[n];
    if (!p->flows[n] || is_leaf(node.op)) continue;
    const bool a = p->active[node.a], b = is_binary(node.op) && p->active[node.b];
    p->flows[node.a] |= a;
    if (b) p->flows[node.b] = true;
    if (node.op == Op::kMul) {
      needed[node.b] |= a;
      needed[node.a] |= b;
    } else if (node.op == Op::kDiv) {
      needed[node.b] = true;
      needed[n] |= b;
    } else if (node.op == Op::kMax) {
      needed[node.larger] = true;
    } else if (node.op == Op::kLog) {
      needed[node.a] = true;
    } else if (!is_binary(node.op)) {
      needed[n] = true;
    }
  }
}

constexpr BackwardPlan plan_backward(const Graph& g, int gates, int states) {
  BackwardPlan p;
  bool needed[kMostNodes] = {}, there[kMostNodes] = {}, of_state[kMostNodes] = {};
  int uses[kMostNodes] = {};
  for (int n = 0; n < g.count; ++n) {
    const Node& node = g.node[n];
    const bool leaf = is_leaf(node.op), binary = is_binary(node.op);
    p.slot[n] = p.state[n] = -1;
    for (int s = states - 1; s >= 0; --s) {
      if (g.next[s] == n && !leaf) p.state[n] = s;
    }
    p.active[n] = leaf ? node.op < Op::kScalar : p.active[node.a] || (binary && p.active[node.b]);
    p.active[n] &= node.op != Op::kLarger;
    of_state[n] = leaf ? node.op == Op::kPrev : of_state[node.a] || (binary && of_state[node.b]);
    if (leaf) continue;
    ++uses[node.a];
    if (binary) ++uses[node.b];
  }
  for (int s = 0; s < states; ++s) p.flows[g.next[s]] = p.active[g.next[s]];
  mark_flow(g, &p, needed);
  // Saved is what a derivative reads and neither the states nor what is saved already give.
  for (int n = 0; n < g.count; ++n) {
    const Node& node = g.node[n];
    if (node.op == Op::kX || node.op == Op::kH) {
      there[n] = false;
    } else {
      there[n] = is_leaf(node.op) || p.state[n] >= 0 ||
                 (there[node.a] && (!is_binary(node.op) || there[node.b]));
    }
    if (!needed[n] || there[n]) continue;
    p.slot[n] = p.saved++;
    p.saved_reads_state |= of_state[n];
    there[n] = true;
  }
  for (int n = 0; n < g.count; ++n) {
    if (needed[n]) mark_used(g, &p, n);
  }
  // Whether x and h of every gate appear as their sum alone.
  for (int k = 0; k < gates; ++k) {
    bool sum = false;
    for (int n = 0; n < g.count; ++n) {
      const Node& node = g.node[n];
      sum |= node.op == Op::kAdd &&
             ((node.a == k && node.b == gates + k) || (node.b == k && node.a == gates + k));
    }
    p.shared &= sum && uses[k] == 1 && uses[gates + k] == 1;
  }
  const int h = 2 * gates;
  p.reads_h = uses[h] > 0;
  for (int s = 0; s < states; ++s) p.reads_h |= g.next[s] == h;
  p.direct = p.flows[h];
  return p;
}

// The first node from `from` on that passes a gradient on to n; count where there is none.
constexpr int consumer(const Graph& g, const BackwardPlan& p, int n, int from) {
  for (; from < g.count; ++from) {
    const Node& node = g.node[from];
    if (is_leaf(node.op) || !p.flows[from]) continue;
    if (node.a == n || (is_binary(node.op) && node.b == n)) return from;
  }
  return g.count;
}

}  // namespace fastrnn
