// Memory as the kernels see it: exactly as long as its contents, so that AddressSanitizer sees one
// byte too many, and filled with NaN until it is written.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../../../csrc/cpu/params.h"

using fastrnn::Dtype;

using Values = std::vector<double>;

inline size_t size_of(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

// One value to and from its storage, the upper half of a float where that is bfloat16. The drivers'
// inputs are small multiples of 2^-6: exact in every type.
inline void encode(Dtype dtype, double value, void* out) {
  const float single = float(value);
  const _Float16 half = _Float16(value);
  const void* const stored[] = {&value, &single, (const char*)&single + 2, &half};
  std::memcpy(out, stored[int(dtype)], size_of(dtype));
}

inline double decode(Dtype dtype, const void* in) {
  double value = 0;
  float single = 0;
  _Float16 half = 0;
  void* const stored[] = {&value, &single, (char*)&single + 2, &half};
  std::memcpy(stored[int(dtype)], in, size_of(dtype));
  return dtype == Dtype::kFloat64 ? value : dtype == Dtype::kFloat16 ? double(half) : single;
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
    clear();
  }
  Buffer(Dtype dtype, const Values& values, int skew = 0)
      : Buffer(dtype, int64_t(values.size()), skew) {
    for (int64_t i = 0; i < count_; ++i) encode(dtype, values[i], data_ + i * size_of(dtype));
    freeze();
  }
  Buffer(Buffer&& other) noexcept { *this = static_cast<Buffer&&>(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(dtype_, other.dtype_), std::swap(count_, other.count_),
        std::swap(bytes_, other.bytes_);
    std::swap(block_, other.block_), std::swap(data_, other.data_), std::swap(copy_, other.copy_);
    return *this;
  }
  ~Buffer() { std::free(block_); }

  // Null without contents, as torch has it.
  void* get() const { return count_ > 0 ? data_ : nullptr; }
  void clear() { std::memset(data_, 0xff, bytes_); }  // NaN in all four formats
  bool changed() const { return bytes_ > 0 && std::memcmp(copy_.data(), data_, bytes_) != 0; }
  // From here on changed() compares with what is there now.
  void freeze() { copy_.assign(data_, data_ + bytes_); }
  Values values() const {
    Values result(count_);
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
