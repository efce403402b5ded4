#include "cuda_context.h"

#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>
#include <cublas_v2.h>

#include "cuda_blas.h"

namespace fastrnn::cuda {

namespace {

// cuBLAS on torch's handle, which has torch's stream and a workspace that a CUDA graph may capture.
class Cublas : public Library {
 public:
  Cublas(Dtype dtype, bool tf32) : dtype_(dtype) {
    constexpr cudaDataType kTypes[] = {CUDA_R_64F, CUDA_R_32F, CUDA_R_16BF, CUDA_R_16F};
    type_ = kTypes[int(dtype)];
    if (dtype == Dtype::kFloat64) compute_ = CUBLAS_COMPUTE_64F;
    // Pedantic, because the handle's own mode follows torch's setting for matmul, not for RNNs.
    if (dtype == Dtype::kFloat32)
      compute_ = tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F_PEDANTIC;
  }

  void product(const Matrix& out, const Matrix& a, const Matrix& b, Transpose transpose,
               bool add) override {
    const BlasCall call = blas_call(out, a, b, transpose);
    const double one64 = 1, beta64 = add;
    const float one32 = 1, beta32 = add;
    const bool wide = dtype_ == Dtype::kFloat64;
    const void* alpha = wide ? static_cast<const void*>(&one64) : &one32;
    const void* beta = wide ? static_cast<const void*>(&beta64) : &beta32;
    const cublasStatus_t status = cublasGemmEx_64(
        at::cuda::getCurrentCUDABlasHandle(), call.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N,
        call.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N, call.m, call.n, call.k, alpha, call.a, type_,
        call.lda, call.b, type_, call.ldb, beta, call.c, type_, call.ldc, compute_,
        CUBLAS_GEMM_DEFAULT);
    TORCH_CHECK(status == CUBLAS_STATUS_SUCCESS, "fastrnn: cublasGemmEx failed with status ",
                static_cast<int>(status), " for m = ", call.m, ", n = ", call.n, ", k = ", call.k);
  }

 private:
  Dtype dtype_;
  cudaDataType type_;
  cublasComputeType_t compute_ = CUBLAS_COMPUTE_32F;
};

}  // namespace

struct Context::State {
  c10::cuda::CUDAGuard guard;
  Cublas library;
};

Context::Context(const at::Tensor& like, Dtype dtype, bool tf32)
    : state_(new State{c10::cuda::CUDAGuard(like.device()), Cublas(dtype, tf32)}) {}
Context::~Context() = default;

bool Context::serves(const at::Tensor& tensor) { return tensor.is_cuda(); }

cudaStream_t Context::stream() const { return at::cuda::getCurrentCUDAStream(); }

bool Context::is_captured() const {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(stream(), &status);
  if (error != cudaSuccess) cudaGetLastError();  // as below
  return error == cudaSuccess && status != cudaStreamCaptureStatusNone;
}

Library& Context::blas() const { return state_->library; }

Device Context::device() const {
  const cudaDeviceProp* device = at::cuda::getCurrentDeviceProperties();
  // Every device since Hopper has clusters of eight; the data centre's can have sixteen.
  const int cluster = device->major < 9 ? 0 : device->major <= 10 ? 16 : 8;
  return {10 * device->major + device->minor, device->multiProcessorCount,
          static_cast<int>(device->sharedMemPerBlockOptin), cluster};
}

const char* Context::error_text(cudaError_t error) {
  cudaGetLastError();  // or torch's next launch would report it once more
  return cudaGetErrorString(error);
}

}  // namespace fastrnn::cuda
