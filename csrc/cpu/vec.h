// A vector of accumulate values: the type that the cells see on the CPU. Written with the
// compiler's vector extension, so one text serves every instruction set; the file that includes it
// says which (isa/*.cpp). Everything is forced inline: no code compiled for one instruction set may
// be reached from another. GCC does not update the predefined macros with its target pragma, so the
// files define FASTRNN_LEVEL (0 plain, 1 AVX2, 2 AVX512, 3 with bfloat16 products, 4 with tiles of
// them) for the headers, and FASTRNN_VNNI where there is the dot product of bytes.
#pragma once

#include <cstdint>

#include "../common/host_device.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastrnn::cpu::FASTRNN_ISA {

constexpr int kVectorBytes = FASTRNN_LEVEL >= 2 ? 64 : FASTRNN_LEVEL == 1 ? 32 : 16;
constexpr int kVectorRegisters = FASTRNN_LEVEL >= 2 ? 32 : 16;
constexpr double kProductsPerCycle = FASTRNN_LEVEL >= 1 ? 2 : 1;

// The compiler's vector types. Spelled out per element type: GCC loses the attribute where the
// element type is a template parameter.
template <class A>
struct VecTypes;
template <>
struct VecTypes<float> {
  typedef int32_t Bit;
  typedef float Raw __attribute__((vector_size(kVectorBytes)));
  typedef float Unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VecTypes<double> {
  typedef int64_t Bit;
  typedef double Raw __attribute__((vector_size(kVectorBytes)));
  typedef double Unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
};

// kCoarse: the values are on their way to or from 16-bit storage, so activations may be off by
// 1e-4.
template <class A, bool kCoarse = false>
struct Vec {
  static constexpr int kWidth = kVectorBytes / int(sizeof(A));
  using Raw = typename VecTypes<A>::Raw;
  using Unaligned = typename VecTypes<A>::Unaligned;
  using Bits = typename VecTypes<A>::Bits;

  Raw v;

  Vec() = default;
  FASTRNN_HD explicit Vec(A s) : v(s - Raw{}) {}
  FASTRNN_HD explicit Vec(Raw raw) : v(raw) {}
  FASTRNN_HD explicit Vec(Vec<A, !kCoarse> other) : v(other.v) {}

  static FASTRNN_HD Vec load(const A* p) { return Vec(Raw(*(const Unaligned*)p)); }
  FASTRNN_HD void store(A* p) const { *(Unaligned*)p = v; }

  FASTRNN_HD friend Vec operator+(Vec a, Vec b) { return Vec(a.v + b.v); }
  FASTRNN_HD friend Vec operator-(Vec a, Vec b) { return Vec(a.v - b.v); }
  FASTRNN_HD friend Vec operator*(Vec a, Vec b) { return Vec(a.v * b.v); }
};

// a * b + c; the compiler fuses it where the instruction set has it.
template <class A, bool C>
FASTRNN_HD Vec<A, C> multiply_add(Vec<A, C> a, Vec<A, C> b, Vec<A, C> c) {
  return Vec<A, C>(a.v * b.v + c.v);
}

// The larger and the smaller one. The comparison is false for NaN, so x may be NaN and stays it.
template <class A, bool C>
FASTRNN_HD Vec<A, C> at_least(Vec<A, C> x, A low) {
  return Vec<A, C>(x.v < low ? Vec<A, C>(low).v : x.v);
}
template <class A, bool C>
FASTRNN_HD Vec<A, C> at_most(Vec<A, C> x, A high) {
  return Vec<A, C>(x.v > high ? Vec<A, C>(high).v : x.v);
}

template <class A, bool C>
FASTRNN_HD Vec<A, C> quotient(Vec<A, C> a, Vec<A, C> b) {
  return Vec<A, C>(a.v / b.v);
}

#if FASTRNN_LEVEL >= 2
// One instruction instead of the two that GCC makes of the above; it returns its second operand
// where one is NaN.
template <bool C>
FASTRNN_HD Vec<float, C> at_least(Vec<float, C> x, float low) {
  return Vec<float, C>((typename Vec<float>::Raw)_mm512_max_ps(_mm512_set1_ps(low), (__m512)x.v));
}
template <bool C>
FASTRNN_HD Vec<float, C> at_most(Vec<float, C> x, float high) {
  return Vec<float, C>((typename Vec<float>::Raw)_mm512_min_ps(_mm512_set1_ps(high), (__m512)x.v));
}

// A division of 16 floats takes as long as 16 products. From the 14-bit reciprocal one Newton step
// for it and one for the quotient reach 1e-7 relative. The reciprocal is 0 from 2^126 on.
FASTRNN_HD Vec<float> quotient(Vec<float> a, Vec<float> b) {
  using V = Vec<float>;
  const V rough((V::Raw)_mm512_rcp14_ps((__m512)b.v));
  const V reciprocal(rough.v + rough.v * (1.0f - b.v * rough.v));
  const V q = a * reciprocal;
  return V(rough.v == 0.0f ? rough.v : q.v + reciprocal.v * (a.v - b.v * q.v));
}
FASTRNN_HD Vec<float, true> quotient(Vec<float, true> a, Vec<float, true> b) {
  using V = Vec<float, true>;
  return a * V((V::Raw)_mm512_rcp14_ps((__m512)b.v));
}
#endif

template <class A, bool C>
FASTRNN_HD A sum_of_lanes(Vec<A, C> x) {
  A lanes[Vec<A, C>::kWidth];
  x.store(lanes);
#pragma GCC unroll 8
  for (int half = Vec<A, C>::kWidth / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// sum[r][v] += x(r) * w(v). The fewer of both stay in registers.
template <int R, int V, class Sum, class X, class W>
FASTRNN_HD void add_products(Sum (*sum)[V], const X& x, const W& w) {
  Sum held[R < V ? R : V];
  if constexpr (R < V) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) held[r] = x(r);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const Sum weights = w(v);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r][v] = multiply_add(held[r], weights, sum[r][v]);
    }
  } else {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) held[v] = w(v);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Sum value = x(r);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] = multiply_add(value, held[v], sum[r][v]);
    }
  }
}

FASTRNN_HD int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FASTRNN_HD int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace fastrnn::cpu::FASTRNN_ISA
