// The matrix product of the gradients, in tight and in padded rows, beside a plain loop.
#pragma once

#include <cmath>
#include <cstdio>
#include <deque>
#include <optional>
#include <string>

#include "../../../csrc/cpu/dispatch.h"
#include "buffer.h"

struct ProductShape {
  int64_t M, N, K;
};
// The last ones are large enough for several threads and a second pass over M, and over K.
constexpr ProductShape kProductShapes[] = {{1, 1, 1},   {3, 17, 33},    {17, 33, 1},
                                           {33, 3, 17}, {245, 33, 259}, {18, 67, 1601}};

// A b, and the c that it goes into, with `pad` values between the rows of both; or the rounded c.
class ProductSide {
 public:
  template <class Draw>
  ProductSide(int64_t N, int64_t pad, int64_t K, int64_t M, Dtype dtype, const Draw& draw)
      : N(N),
        M(M),
        stride(N + pad),
        b(dtype, draw(K * stride - pad)),
        before(draw(M * stride - pad)),
        dtype(dtype) {}

  fastrnn::cpu::ProductParams::Side params(bool rounds) {
    c.emplace(Dtype::kFloat32, before);
    rounded.reset();
    if (rounds) rounded.emplace(dtype, M * N);
    return {N, b.get(), (float*)c->get(), stride, stride, rounds ? rounded->get() : nullptr};
  }

  // Whether c holds left b, added to what it held if `add`, and nothing else has changed.
  template <class Left>
  bool check(int64_t K, const Left& left, bool add) {
    const Values b_read = b.values(), sums = c->values();
    const Values results = rounded ? rounded->values() : Values{};
    // Half the distance to the next bfloat16.
    const double rounding = rounded && dtype == Dtype::kBfloat16 ? 1.0 / 256 : 0;
    bool right = !b.changed();
    for (int64_t i = 0; i < int64_t(sums.size()); ++i) {
      const int64_t m = i / stride, n = i % stride;
      double truth = n < N && !add ? 0 : before[i];
      for (int64_t k = 0; n < N && k < K; ++k) truth += left(m, k) * b_read[k * stride + n];
      const double actual = n < N && rounded ? results[m * N + n] : sums[i];
      const double allowed = n < N ? 1e-4 + rounding * std::fabs(truth) : 0;
      right = right && std::fabs(actual - truth) <= allowed;
    }
    return right;
  }

 private:
  int64_t N, M, stride;
  Buffer b;
  Values before;
  Dtype dtype;
  std::optional<Buffer> c, rounded;
};

// Returns the number of failures; adds to `runs`. `dtype` is that of a and b.
template <class Draw>
int check_products(const std::string& isa, fastrnn::cpu::ProductKernel kernel, Dtype dtype,
                   const Draw& draw, int* runs) {
  if (!kernel) return 0;
  int failures = 0;
  for (const auto& [M, N, K] : kProductShapes) {
    for (int variant = 0; variant < 32; ++variant) {
      const bool transposed = variant & 1, add = variant & 2;
      const int64_t pad = variant & 4 ? 3 : 0, lda = (transposed ? M : K) + pad;
      // The last row ends where its values end: what would follow belongs to somebody else.
      const Buffer a(dtype, draw((transposed ? K : M) * lda - pad));
      const Values a_read = a.values();
      std::deque<ProductSide> sides;  // which stay where they are
      sides.emplace_back(N, pad, K, M, dtype, draw);
      if (variant & 8) sides.emplace_back(N + 18, 2 * pad, K, M, dtype, draw);
      for (int threads = 1; threads <= 3; ++threads) {
        fastrnn::cpu::ProductParams params{M,   K,       a.get(), lda,    transposed,
                                           add, threads, {},      nullptr};
        for (size_t i = 0; i < sides.size(); ++i) params.sides[i] = sides[i].params(variant & 16);
        const Buffer workspace(Dtype::kFloat32, int64_t(kernel(params) / sizeof(float)));
        params.workspace = workspace.get();
        kernel(params);
        const auto left = [&](int64_t m, int64_t k) {
          return a_read[transposed ? k * lda + m : m * lda + k];
        };
        bool right = !a.changed();
        for (ProductSide& side : sides) right = side.check(K, left, add) && right;
        ++*runs;
        if (right) continue;
        ++failures;
        std::printf("FAILED %s product M=%d N=%d K=%d variant %d threads %d\n", isa.c_str(), int(M),
                    int(N), int(K), variant, threads);
      }
    }
  }
  return failures;
}
