// The kernels of one cell, in every storage type: what a file of inst/ consists of.
#pragma once

#include "step.cuh"

#define FASTRNN_INSTANTIATE_FOR(Cell, Scalar)                                              \
  template cudaError_t forward_step<Cell, Scalar>(const StepKernel&, const ForwardStep&,   \
                                                  cudaStream_t);                           \
  template cudaError_t backward_step<Cell, Scalar>(const StepKernel&, const BackwardStep&, \
                                                   cudaStream_t);

#define FASTRNN_INSTANTIATE(Cell)              \
  namespace fastrnn::cuda {                    \
  FASTRNN_INSTANTIATE_FOR(Cell, double)        \
  FASTRNN_INSTANTIATE_FOR(Cell, float)         \
  FASTRNN_INSTANTIATE_FOR(Cell, __nv_bfloat16) \
  FASTRNN_INSTANTIATE_FOR(Cell, __half)        \
  }
