// Storage types in memory, accumulate types in registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "../common/host_device.h"
#include "params.h"

namespace fastrnn::cuda {

template <class Scalar>
struct Storage {
  using Accumulate = Scalar;
  static FASTRNN_HD Accumulate widen(Scalar x) { return x; }
  static FASTRNN_HD Scalar narrow(Accumulate x) { return x; }
};

template <>
struct Storage<__nv_bfloat16> {
  using Accumulate = float;
  static FASTRNN_HD float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
  static FASTRNN_HD __nv_bfloat16 narrow(float x) { return __float2bfloat16(x); }
};

template <>
struct Storage<__half> {
  using Accumulate = float;
  static FASTRNN_HD float widen(__half x) { return __half2float(x); }
  static FASTRNN_HD __half narrow(float x) { return __float2half(x); }
};

template <class Scalar>
using Accumulate = typename Storage<Scalar>::Accumulate;

// A typed view of a parameter's untyped pointer, whose values are widened, or stay as they are
// (To = Scalar).
template <class Scalar, class To = Accumulate<Scalar>>
struct Array {
  const Scalar* data;
  FASTRNN_HD explicit Array(const void* p) : data(static_cast<const Scalar*>(p)) {}
  FASTRNN_HD To operator[](int64_t i) const {
    if constexpr (std::is_same_v<To, Scalar>) {
      return data[i];
    } else {
      return Storage<Scalar>::widen(data[i]);
    }
  }
  FASTRNN_HD To operator[](const Place& place) const { return Array(place.in(data))[int64_t{0}]; }
};

template <class Scalar>
FASTRNN_HD void store(void* p, int64_t i, Accumulate<Scalar> value) {
  static_cast<Scalar*>(p)[i] = Storage<Scalar>::narrow(value);
}
template <class Scalar>
FASTRNN_HD void store(void* p, const Place& place, Accumulate<Scalar> value) {
  *place.in(static_cast<Scalar*>(p)) = Storage<Scalar>::narrow(value);
}

// A state besides h where one call takes it over from another: accumulate if `wide`, else scalar.
template <class Scalar>
FASTRNN_HD Accumulate<Scalar> load_carried(const void* p, bool wide, const Place& place) {
  return wide ? Array<Accumulate<Scalar>>(p)[place] : Array<Scalar>(p)[place];
}

template <class Scalar>
FASTRNN_HD void store_carried(void* p, bool wide, const Place& place, Accumulate<Scalar> value) {
  wide ? store<Accumulate<Scalar>>(p, place, value) : store<Scalar>(p, place, value);
}

}  // namespace fastrnn::cuda
