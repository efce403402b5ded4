// Large float32 products for the gradients of the input and of the weights, on the same inner loops
// as the recurrence, for the shapes on which they are not slower than the library's
// (benchmarks/NOTES.md).
#pragma once

#include "layout.h"

namespace fastrnn::cpu::FASTRNN_ISA {

class Product {
  using Op = Plain<float>;
  static constexpr int W = kLanes<Op>;
  static constexpr int64_t kDepth = 256;  // of K at a time: a panel of b then stays near the core
  static constexpr int64_t kRows = 240;   // of c at a time: so does the transposed block of a

 public:
  explicit Product(const ProductParams& params) : p(params), columns{p.N, W, kMaxVecs, 1} {
    constexpr double kWorthAThread = 1e5;  // multiply-adds
    const double most = double(p.M) * double(p.N) * double(p.K) / kWorthAThread;
    threads = int(larger(1, smaller(p.threads, smaller(int64_t(most), p.M))));
    workspace = (float*)__builtin_malloc(threads * kPart * sizeof(float));
  }
  ~Product() { __builtin_free(workspace); }

  void run(int thread) {
    const Range mine = part_of(p.M, threads, thread);
    float* panel = workspace + thread * kPart;
    float* block = panel + kPanel;
    for (int64_t k = 0; k < p.K; k += kDepth) {
      const int64_t depth = smaller(kDepth, p.K - k);
      for (int64_t m = mine.begin; m < mine.end; m += kRows) {
        const Range rows{m, smaller(m + kRows, mine.end)};
        if (p.a_transposed) transpose(k, depth, rows, block);
        for (int64_t j = 0; j < columns.count(); ++j) {
          pack_panel<Op>(p.b + k * p.ldb, depth, p.ldb, 1, columns.columns(j), panel);
          multiply_panel(k, depth, rows, j, panel, block);
        }
      }
    }
  }

  int threads;

 private:
  static constexpr int64_t kPanel = kDepth * kMaxVecs * W;
  static constexpr int64_t kPart = kPanel + kDepth * kRows;

  void transpose(int64_t k0, int64_t depth, Range rows, float* block) const {
    constexpr int64_t kSquare = 16;
    for (int64_t k = 0; k < depth; k += kSquare) {
      for (int64_t m = rows.begin; m < rows.end; m += kSquare) {
        for (int64_t i = m; i < smaller(m + kSquare, rows.end); ++i) {
          for (int64_t l = k; l < smaller(k + kSquare, depth); ++l) {
            block[(i - rows.begin) * kDepth + l] = p.a[(k0 + l) * p.lda + i];
          }
        }
      }
    }
  }

  void multiply_panel(int64_t k, int64_t depth, Range rows, int64_t j, const float* panel,
                      const float* block) const {
    static constexpr float kZeros[kMaxVecs * W] = {};
    const int vecs = columns.vecs(j);
    const bool add = p.accumulate || k > 0;
    for_row_groups(rows.begin, rows.end, row_limit(vecs), [&](int64_t m, int count) {
      const float* a[kMaxRows];
      float tile[kMaxRows * kMaxVecs * W] __attribute__((aligned(64)));
      for (int r = 0; r < count; ++r) {
        a[r] = p.a_transposed ? block + (m + r - rows.begin) * kDepth : p.a + (m + r) * p.lda + k;
      }
      multiply<Op>(count, vecs, a, depth, panel, kZeros, tile);
      for (int r = 0; r < count; ++r) {
        for (int v = 0; v < vecs; ++v) {
          const int64_t n = columns.unit(j, v), valid = p.N - n;
          float* c = p.c + (m + r) * p.ldc + n;
          const Vec<float> sum = Vec<float>::load(tile + (r * vecs + v) * W);
          store(c, add ? load((const float*)c, valid) + sum : sum, valid);
        }
      }
    });
  }

  const ProductParams& p;
  const Blocks columns;
  float* workspace;
};

inline void run_product(const ProductParams& params) {
  Product product(params);
  const auto body = [](void* context, int thread) { ((Product*)context)->run(thread); };
  if (run_team(product.threads, body, &product)) return;
  ProductParams alone = params;
  alone.threads = 1;
  run_product(alone);
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
