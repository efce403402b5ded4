// The device of the CUDA backend's bindings, played by the CPU: CPU tensors, one stream, and a
// plain loop in the place of cuBLAS, called with the very arguments that cuBLAS gets.
#include "../../csrc/bindings/cuda_context.h"

#include "../../csrc/bindings/cuda_blas.h"
#include "../../csrc/cuda/dtype.cuh"

namespace fastrnn::cuda {

namespace {

template <class Scalar>
void gemm(const BlasCall& call, bool add) {
  const Array<Scalar> a(call.a), b(call.b), c(call.c);
  for (int64_t j = 0; j < call.n; ++j) {
    for (int64_t i = 0; i < call.m; ++i) {
      Accumulate<Scalar> sum = add ? c[j * call.ldc + i] : Accumulate<Scalar>(0);
      for (int64_t k = 0; k < call.k; ++k) {
        sum += a[call.transpose_a ? i * call.lda + k : k * call.lda + i] *
               b[call.transpose_b ? k * call.ldb + j : j * call.ldb + k];
      }
      store<Scalar>(call.c, j * call.ldc + i, sum);
    }
  }
}

void multiply(Dtype dtype, const BlasCall& call, bool add) {
  switch (dtype) {
    case Dtype::kFloat64:
      return gemm<double>(call, add);
    case Dtype::kFloat32:
      return gemm<float>(call, add);
    case Dtype::kBfloat16:
      return gemm<__nv_bfloat16>(call, add);
    case Dtype::kFloat16:
      return gemm<__half>(call, add);
  }
}

class PlainLoop : public Library {
 public:
  explicit PlainLoop(Dtype dtype) : dtype_(dtype) {}
  void product(const Matrix& out, const Matrix& a, const Matrix& b, Transpose transpose,
               bool add) override {
    const BlasCall call = blas_call(out, a, b, transpose);
    const int64_t rows_a = call.transpose_a ? call.k : call.m,
                  rows_b = call.transpose_b ? call.n : call.k;
    TORCH_CHECK(call.lda >= rows_a && call.ldb >= rows_b && call.ldc >= call.m,
                "a BLAS would refuse this");
    const cudaError_t error =
        emulator::issue(emulator::stream, {"product", [dtype = dtype_, call, add] {
                                             multiply(dtype, call, add);
                                             return cudaSuccess;
                                           }});
    TORCH_CHECK(error == cudaSuccess, "the emulator refused a product");
  }

 private:
  Dtype dtype_;
};

}  // namespace

struct Context::State {
  PlainLoop library;
};

Context::Context(const at::Tensor&, Dtype dtype, bool) : state_(new State{PlainLoop(dtype)}) {}
Context::~Context() = default;
bool Context::serves(const at::Tensor& tensor) { return tensor.is_cpu(); }
cudaStream_t Context::stream() const { return emulator::stream; }
bool Context::is_captured() const { return emulator::recorder != nullptr; }
Library& Context::blas() const { return state_->library; }
Device Context::device() const {
  return {90, emulator::device.sms, emulator::device.shared_per_block, 16};
}
const char* Context::error_text(cudaError_t error) {
  return error == cudaErrorStreamCaptureImplicit ? "work for another stream than the captured one"
                                                 : "the emulator refused the launch";
}

}  // namespace fastrnn::cuda
