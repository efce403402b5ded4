#include "../step.cuh"

namespace fastrnn::cuda {

template cudaError_t gather_projected<double>(const BackwardStep&, cudaStream_t);
template cudaError_t gather_projected<float>(const BackwardStep&, cudaStream_t);
template cudaError_t gather_projected<__nv_bfloat16>(const BackwardStep&, cudaStream_t);
template cudaError_t gather_projected<__half>(const BackwardStep&, cudaStream_t);

}  // namespace fastrnn::cuda
