// Large products for the gradients of the input and of the weights, on the same inner loops as the
// recurrence, for the cases in which the library behind torch is slower (benchmarks/NOTES.md).
#pragma once

#include "layout.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <class Op>
class Product {
  using S = typename Op::Storage;
  using Packed = typename Op::Packed;
  using Row = typename Op::Row;
  using V = VecOf<S>;
  static constexpr int W = kLanes<Op>;
  // Of K at a time, so that b stays near; up to half more, where a short rest would remain.
  static constexpr int64_t kDepth = 2048 / sizeof(Row), kMaxDepth = kDepth + kDepth / 2;
  static constexpr int64_t kStride = kMaxDepth + 64 / sizeof(Row);  // rows in different cache sets
  static constexpr int64_t kRows = 8 * W;  // of c at a time: so do rows of a

 public:
  explicit Product(const ProductParams& params)
      : p(params), columns{{p.sides[0].N, W, kMaxVecs, 1}, {p.sides[1].N, W, kMaxVecs, 1}} {
    const int64_t parts = larger(1, (p.K + kDepth / 2) / kDepth);
    depth = ((p.K + parts - 1) / parts + 31) / 32 * 32;
    constexpr double kWorthAThread = 1e5;  // multiply-adds
    const double N = double(p.sides[0].N + p.sides[1].N);
    const double most = double(p.M) * N * double(p.K) / kWorthAThread;
    threads = int(larger(1, smaller(p.threads, smaller(int64_t(most), squares()))));
    arena = Arena{(char*)p.workspace};
    all_panels = arena.template take<Packed>(threads * panels_size());
    blocks = arena.template take<Row>(threads * kRows * kStride);
    pointers = arena.template take<const S*>(threads * kRows);
  }

  size_t workspace() const { return arena.used; }

  void run(int thread) {
    const Range part = part_of(squares(), threads, thread);
    const Range mine{part.begin * W, smaller(part.end * W, p.M)};
    Packed* const panels[2] = {all_panels + thread * panels_size(),
                               all_panels + thread * panels_size() + panels_size(0)};
    int tile_rows = 0;
    Rows<Op> rows{pointers + thread * kRows, 0, blocks + thread * kRows * kStride, kStride,
                  &tile_rows};
    for (int64_t k = 0; k < p.K; k += depth) {
      rows.depth = smaller(depth, p.K - k);
      for (int side = 0; side < 2; ++side) {
        const auto& [N, b, c, ldb, ldc, rounded] = p.sides[side];
        for (int64_t j = 0; j < columns[side].count; ++j) {
          pack_panel<Op>((const S*)b + k * ldb, rows.depth, ldb, 1, columns[side].columns(j),
                         panel<Op>(panels[side], columns[side], j, rows.depth));
        }
      }
      for (int64_t m = mine.begin; m < mine.end; m += kRows) {
        const Range block{m, smaller(m + kRows, mine.end)};
        gather(k, block, &rows);
        for (int side = 0; side < 2; ++side) {
          for (int64_t j = 0; j < columns[side].count; ++j) {
            multiply_panel(rows, block, side, j,
                           panel<Op>(panels[side], columns[side], j, rows.depth),
                           p.accumulate || k > 0, k + depth >= p.K);
          }
        }
      }
    }
    release_tiles<Op>();
  }

  int threads;

 private:
  int64_t squares() const { return (p.M + W - 1) / W; }
  int64_t panels_size(int side) const { return panel_size<Op>(depth, columns[side].unit_vectors); }
  int64_t panels_size() const { return panels_size(0) + panels_size(1); }

  // Rows of a, or columns of it as rows, from k on.
  void gather(int64_t k, Range block, Rows<Op>* rows) const {
    const S* const a = (const S*)p.a;
    if (!p.a_transposed) {
      for (int64_t i = 0; i < block.size(); ++i) rows->set(i, a + (block.begin + i) * p.lda + k);
      return;
    }
    constexpr int64_t kTogether = 64 / (W * sizeof(S)) > 1 ? 2 : 1;  // squares in a line of a
    if constexpr (!kCopiesRows<Op>) {
      for (int64_t i = 0; i < block.size(); ++i) rows->row[i] = rows->copy + i * kStride;
    }
    for (int64_t l = 0; l < rows->depth; l += W * Op::kDepth) {
      for (int64_t m = 0; m < block.size(); m += kTogether * W) {
        V square[kTogether][W];
        for (int64_t i = 0; i < W; ++i) {
          const int64_t row = l + i * Op::kDepth, left = rows->depth - row;
          const S* const from = a + (k + row) * p.lda + block.begin + m;
          for (int64_t q = 0; q < kTogether; ++q) {
            const int64_t valid = block.size() - m - q * W;
            const bool there = left > 0 && valid > 0;
            square[q][i] = there ? Op::merge_rows(from + q * W, p.lda, left, valid) : V(0);
          }
        }
        Row* const out = rows->copy + m * kStride + l;
        for (int64_t q = 0; q < kTogether; ++q) {
          transpose(square[q]);
          for (int64_t i = 0; i < W; ++i) square[q][i].store((float*)(out + (q * W + i) * kStride));
        }
      }
    }
  }

  void multiply_panel(const Rows<Op>& rows, Range block, int side, int64_t j, const Packed* panel,
                      bool add, bool last) const {
    static constexpr float kZeros[kMaxVecs * W] = {};
    const auto& [N, b, to, ldb, ldc, rounded] = p.sides[side];
    const int vecs = columns[side].vecs(j);
    S* const result = last ? (S*)rounded : nullptr;
    const bool whole = (j + 1) * kMaxVecs * W <= N && !result;
    for_row_groups(0, block.size(), row_limit<Op>(vecs), [&](int64_t m, int count) {
      float* const c = to + (block.begin + m) * ldc + columns[side].unit(j, 0);
      const auto rounded_at = [&](int r) {
        return result + (block.begin + m + r) * N + columns[side].unit(j, 0);
      };
      if constexpr (!Op::kTiles) {
        for (int r = 0; r < count; ++r) {
          if (add || !result) prefetch_written(c + r * ldc, vecs * W);
          if (result) prefetch_written(rounded_at(r), vecs * W);
        }
      }
      if (whole) {
        return multiply_strided<kMaxVecs>(rows, m, count, panel, {kZeros, c, ldc, add},
                                          (const char*)panel);
      }
      float tile[Op::kMaxRows * kMaxVecs * W] __attribute__((aligned(64)));
      multiply<Op>(rows, m, count, vecs, panel, kZeros, tile, panel);
      for (int r = 0; r < count; ++r) {
        for (int v = 0; v < vecs; ++v) {
          float* const out = c + r * ldc + v * W;
          const int64_t valid = N - columns[side].unit(j, v);
          Vec<float> sum = Vec<float>::load(tile + (r * vecs + v) * W);
          if (add) sum = sum + load((const float*)out, valid);
          if (result) {
            store(rounded_at(r) + v * W, V(sum), valid);
          } else {
            store(out, sum, valid);
          }
        }
      }
    });
  }

  const ProductParams& p;
  const Blocks columns[2];  // of each side
  int64_t depth;            // of K at a time
  Arena arena{nullptr};
  Packed* all_panels;  // of each thread: all columns of both b for depth of K
  Row* blocks;         // of each thread: kRows rows, kStride apart
  const S** pointers;
};

template <class Op>
size_t run_product(const ProductParams& params) {
  Product<Op> product(params);
  if (!params.workspace) return product.workspace();
  const auto body = [](void* context, int thread) { ((Product<Op>*)context)->run(thread); };
  if (run_team(product.threads, body, &product)) return 0;
  ProductParams alone = params;  // which needs no more memory
  alone.threads = 1;
  return run_product<Op>(alone);
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
