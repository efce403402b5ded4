// A row-major product in the terms of BLAS, whose matrices are column-major: it is asked for the
// transpose of the result, as the product of the transposes in the opposite order, and what lies
// row-major in memory is already transposed in its eyes.
#pragma once

#include "../cuda/layer.h"

namespace fastrnn::cuda {

// c (m, n) = op(a) (m, k) op(b) (k, n), all column-major.
struct BlasCall {
  bool transpose_a, transpose_b;
  int64_t m, n, k;
  const void* a;
  int64_t lda;
  const void* b;
  int64_t ldb;
  void* c;
  int64_t ldc;
};

inline BlasCall blas_call(const Matrix& out, const Matrix& left, const Matrix& right,
                          Transpose transpose) {
  return {transpose == Transpose::kRight,
          transpose == Transpose::kLeft,
          out.cols,
          out.rows,
          transpose == Transpose::kLeft ? left.rows : left.cols,
          right.data,
          right.stride,
          left.data,
          left.stride,
          out.data,
          out.stride};
}

}  // namespace fastrnn::cuda
