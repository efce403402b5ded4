// A cell as the kernels call it. Where its results are rounded to 16 bits, its functions are made
// of the hardware's approximations, which are right to some 22 bits and take no branches.
#pragma once

#include "../cells/cell.h"
#include "primitives.cuh"

namespace fastrnn::cuda {

struct Approximate {
  float value;
  Approximate() = default;
  FASTRNN_HD Approximate(float x) : value(x) {}
};

FASTRNN_HD Approximate operator+(Approximate a, Approximate b) { return a.value + b.value; }
FASTRNN_HD Approximate operator-(Approximate a, Approximate b) { return a.value - b.value; }
FASTRNN_HD Approximate operator*(Approximate a, Approximate b) { return a.value * b.value; }
FASTRNN_HD Approximate quotient(Approximate a, Approximate b) { return a.value / b.value; }
FASTRNN_HD Approximate max_(Approximate a, Approximate b) {
  return fastrnn::max_(a.value, b.value);
}
FASTRNN_HD Approximate is_larger(Approximate a, Approximate b) {
  return fastrnn::is_larger(a.value, b.value);
}
FASTRNN_HD Approximate relu_(Approximate x) { return fastrnn::relu_(x.value); }
FASTRNN_HD Approximate relu_backward(Approximate grad, Approximate y) {
  return fastrnn::relu_backward(grad.value, y.value);
}
FASTRNN_HD Approximate log_(Approximate x) { return fastrnn::log_(x.value); }

__device__ __forceinline__ Approximate exp_(Approximate x) {
  return exp2_approximate(x.value * 1.44269504f);  // log2 e
}
__device__ __forceinline__ Approximate sigmoid_(Approximate x) {
  return reciprocal_approximate(1.0f + exp2_approximate(x.value * -1.44269504f));
}
// Near 0 the difference from 1 cancels, and the first terms of the series are right.
__device__ __forceinline__ Approximate tanh_(Approximate x) {
  const float square = x.value * x.value;
  const float series = ((-17.0f / 315 * square + 2.0f / 15) * square - 1.0f / 3) * square;
  const float from_one =
      2.0f * reciprocal_approximate(1.0f + exp2_approximate(x.value * 2.88539008f));
  return square < 0.0625f ? x.value + x.value * series : 1.0f - from_one;
}

template <class Cell, class Scalar>
struct Rounded {
  template <class A>
  static __device__ __forceinline__ void forward(const In<A>& in, A* next, A* saved) {
    if constexpr (sizeof(Scalar) == sizeof(A)) {
      Cell::forward(in, next, saved);
    } else {
      Many<Cell::kGates> x(in.x), h(in.h);
      Many<Cell::kStates> prev(in.prev), after;
      Many<kParams> params(in.params);
      Many<Cell::kScalars> scalars(in.scalars);
      Many<Cell::kSaved> kept;
      Cell::forward(In<Approximate>{x.of, h.of, prev.of, params.of, scalars.of}, after.of, kept.of);
      after.give(next);
      kept.give(saved);
    }
  }

  template <class A>
  static __device__ __forceinline__ void backward(const A* saved, const In<A>& in, const A* next,
                                                  const A* grad_next, A* grad_x, A* grad_h,
                                                  A* grad_prev, A* grad_params) {
    if constexpr (sizeof(Scalar) == sizeof(A)) {
      Cell::backward(saved, in, next, grad_next, grad_x, grad_h, grad_prev, grad_params);
    } else {
      Many<Cell::kSaved> kept(saved);
      Many<Cell::kStates> prev(in.prev), after(next), grad_after(grad_next), grad_before;
      Many<kParams> params(in.params), of_params;
      Many<Cell::kScalars> scalars(in.scalars);
      Many<Cell::kGates> x, h;
      Cell::backward(kept.of, In<Approximate>{nullptr, nullptr, prev.of, params.of, scalars.of},
                     after.of, grad_after.of, x.of, h.of, grad_before.of, of_params.of);
      x.give(grad_x);
      h.give(grad_h);
      grad_before.give(grad_prev);
      of_params.give(grad_params);
    }
  }

 private:
  static constexpr int kParams = Cell::kNorms > 0 ? 0 : Cell::kParams;  // norm.cuh has those
  template <int kCount>
  struct Many {
    Approximate of[kCount + 1];
    Many() = default;
    __device__ __forceinline__ explicit Many(const float* values) {
      for_each<kCount>([&](auto k) { of[k] = values[k]; });
    }
    __device__ __forceinline__ void give(float* values) const {
      for_each<kCount>([&](auto k) { values[k] = of[k].value; });
    }
  };
};

}  // namespace fastrnn::cuda
