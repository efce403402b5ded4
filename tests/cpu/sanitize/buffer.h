// Memory as the kernels see it: exactly as long as its contents, so that AddressSanitizer sees one
// byte too many, and filled with NaN until it is written.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../../../csrc/cpu/params.h"

using fastrnn::Dtype;

inline size_t size_of(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

// One value to and from its storage, by the formats' definitions.
inline void encode(Dtype dtype, double value, void* out) {
  if (dtype == Dtype::kFloat64) {
    std::memcpy(out, &value, 8);
  } else if (dtype == Dtype::kFloat32) {
    const float single = float(value);
    std::memcpy(out, &single, 4);
  } else {
    // The driver's inputs are small multiples of 2^-6: exact in both 16-bit types.
    const bool half = dtype == Dtype::kFloat16;
    int exponent = 0;
    const double fraction = std::frexp(std::fabs(value), &exponent);
    const int mantissa_bits = half ? 10 : 7, bias = half ? 15 : 127;
    uint16_t bits = 0;
    if (std::isnan(value)) {
      bits = 0x7fff;
    } else if (value != 0) {
      const int mantissa = int(std::ldexp(fraction, mantissa_bits + 1)) - (1 << mantissa_bits);
      bits = uint16_t((exponent - 1 + bias) << mantissa_bits | mantissa);
    }
    if (value < 0) bits |= 0x8000;
    std::memcpy(out, &bits, 2);
  }
}

inline double decode(Dtype dtype, const void* in) {
  if (dtype == Dtype::kFloat64) {
    double value;
    std::memcpy(&value, in, 8);
    return value;
  }
  if (dtype == Dtype::kFloat32) {
    float value;
    std::memcpy(&value, in, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, in, 2);
  const bool half = dtype == Dtype::kFloat16;
  const int mantissa_bits = half ? 10 : 7, bias = half ? 15 : 127;
  const int top = half ? 31 : 255;
  const int exponent = (bits & 0x7fff) >> mantissa_bits,
            mantissa = bits & ((1 << mantissa_bits) - 1);
  if (exponent == top) return mantissa ? NAN : bits & 0x8000 ? -INFINITY : INFINITY;
  const double value =
      exponent ? std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits)
               : std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return bits & 0x8000 ? -value : value;
}

class Buffer {
 public:
  Buffer() = default;
  // `skew` moves the start off the allocator's alignment, as a view into a larger tensor is.
  Buffer(Dtype dtype, int64_t count, int skew = 0)
      : dtype_(dtype), count_(count), bytes_(size_t(count) * size_of(dtype)) {
    const size_t before = size_t(skew) * size_of(dtype);
    block_ = (char*)std::malloc(before + bytes_);
    data_ = block_ + before;
    std::memset(data_, 0xff, bytes_);  // NaN in all four formats
  }
  Buffer(Dtype dtype, const std::vector<double>& values, int skew = 0)
      : Buffer(dtype, int64_t(values.size()), skew) {
    for (int64_t i = 0; i < count_; ++i) encode(dtype, values[i], data_ + i * size_of(dtype));
    copy_.assign(data_, data_ + bytes_);
  }
  Buffer(Buffer&& other) noexcept { *this = static_cast<Buffer&&>(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(dtype_, other.dtype_), std::swap(count_, other.count_),
        std::swap(bytes_, other.bytes_);
    std::swap(block_, other.block_), std::swap(data_, other.data_), std::swap(copy_, other.copy_);
    return *this;
  }
  ~Buffer() { std::free(block_); }

  void* get() const { return data_; }
  bool changed() const { return bytes_ > 0 && std::memcmp(copy_.data(), data_, bytes_) != 0; }
  // From here on changed() compares with what is there now.
  void freeze() { copy_.assign(data_, data_ + bytes_); }
  std::vector<double> values() const {
    std::vector<double> result(count_);
    for (int64_t i = 0; i < count_; ++i) result[i] = decode(dtype_, data_ + i * size_of(dtype_));
    return result;
  }

 private:
  Dtype dtype_{};
  int64_t count_ = 0;
  size_t bytes_ = 0;
  char *block_ = nullptr, *data_ = nullptr;
  std::vector<char> copy_;
};
