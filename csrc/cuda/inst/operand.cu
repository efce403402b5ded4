#include "../step.cuh"

namespace fastrnn::cuda {

template cudaError_t mask_operand<double>(const ForwardStep&, cudaStream_t);
template cudaError_t mask_operand<float>(const ForwardStep&, cudaStream_t);
template cudaError_t mask_operand<__nv_bfloat16>(const ForwardStep&, cudaStream_t);
template cudaError_t mask_operand<__half>(const ForwardStep&, cudaStream_t);

}  // namespace fastrnn::cuda
