// A vector of accumulate values: the type that the cells see on the CPU. Written with the
// compiler's vector extension, so one text serves every instruction set; the file that includes it
// says which (isa/*.cpp). Everything is forced inline: no code compiled for one instruction set may
// be reached from another. GCC does not update the predefined macros with its target pragma, so the
// files define FASTRNN_LEVEL (0 plain, 1 AVX2, 2 AVX512, 3 AVX512 with bfloat16) for the headers.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace fastrnn::cpu::FASTRNN_ISA {

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

template <class A>
struct Vec {
  static constexpr int kWidth = kVectorBytes / int(sizeof(A));
  using Raw = typename VecTypes<A>::Raw;
  using Unaligned = typename VecTypes<A>::Unaligned;
  using Bits = typename VecTypes<A>::Bits;

  Raw v;

  Vec() = default;
  FASTRNN_HD explicit Vec(A s) : v(s - Raw{}) {}
  FASTRNN_HD explicit Vec(Raw raw) : v(raw) {}

  static FASTRNN_HD Vec load(const A* p) { return Vec(Raw(*(const Unaligned*)p)); }
  FASTRNN_HD void store(A* p) const { *(Unaligned*)p = v; }

  FASTRNN_HD friend Vec operator+(Vec a, Vec b) { return Vec(a.v + b.v); }
  FASTRNN_HD friend Vec operator-(Vec a, Vec b) { return Vec(a.v - b.v); }
  FASTRNN_HD friend Vec operator*(Vec a, Vec b) { return Vec(a.v * b.v); }
  FASTRNN_HD friend Vec operator/(Vec a, Vec b) { return Vec(a.v / b.v); }
};

// a * b + c; the compiler fuses it where the instruction set has it.
template <class A>
FASTRNN_HD Vec<A> multiply_add(Vec<A> a, Vec<A> b, Vec<A> c) {
  return Vec<A>(a.v * b.v + c.v);
}

FASTRNN_HD int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FASTRNN_HD int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace fastrnn::cpu::FASTRNN_ISA
