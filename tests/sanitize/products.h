// The matrix product of the gradients, in tight and in padded rows, beside a plain loop.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>

#include "../../csrc/cpu/dispatch.h"
#include "buffer.h"
#include "naive.h"

struct ProductShape {
  int64_t M, N, K;
};
// The last one is large enough for several threads and for a second pass over K and over M.
constexpr ProductShape kProductShapes[] = {
    {1, 1, 1}, {3, 17, 33}, {17, 33, 1}, {33, 3, 17}, {245, 33, 259}};

// Returns the number of failures; adds to `runs`. `dtype` is that of a and b.
template <class Draw>
int check_products(const std::string& isa, fastrnn::cpu::ProductKernel kernel, Dtype dtype,
                   const Draw& draw, int* runs) {
  if (!kernel) return 0;
  int failures = 0;
  for (const auto& [M, N, K] : kProductShapes) {
    for (int variant = 0; variant < 8; ++variant) {
      const bool transposed = variant & 1, add = variant & 2;
      const int64_t pad = variant & 4 ? 3 : 0;
      const int64_t lda = (transposed ? M : K) + pad, ldb = N + pad, ldc = N + pad;
      // The last row ends where its values end: what would follow belongs to somebody else.
      const Values a = draw((transposed ? K : M) * lda - pad), b = draw(K * ldb - pad),
                   c = draw(M * ldc - pad);
      const Buffer a_data(dtype, a), b_data(dtype, b);
      const Values a_read = a_data.values(), b_read = b_data.values();
      for (int threads = 1; threads <= 3; ++threads) {
        const Buffer c_data(Dtype::kFloat32, c);
        kernel({M, N, K, a_data.get(), b_data.get(), (float*)c_data.get(), lda, ldb, ldc,
                transposed, add, threads});
        const Values actual = c_data.values();
        bool right = !a_data.changed() && !b_data.changed();
        for (int64_t i = 0; i < int64_t(actual.size()); ++i) {
          const int64_t m = i / ldc, n = i % ldc;
          double truth = n < N && !add ? 0 : c[i];
          for (int64_t k = 0; n < N && k < K; ++k)
            truth += a_read[transposed ? k * lda + m : m * lda + k] * b_read[k * ldb + n];
          // Between the rows nothing may change.
          right = right && std::fabs(actual[i] - truth) <= (n < N ? 1e-4 : 0);
        }
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
