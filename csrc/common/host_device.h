// FASTRNN_HD marks a function that the CPU and the CUDA kernels share.
#pragma once

#if defined(__CUDACC__)
#define FASTRNN_HD __host__ __device__ __forceinline__
#else
#define FASTRNN_HD inline __attribute__((always_inline))
#endif
