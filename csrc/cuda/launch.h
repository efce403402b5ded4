// Launchers of the step kernels, readable by a host compiler. They take raw pointers and a stream,
// allocate nothing, wait for nothing, and return the launch's own error.
#pragma once

#include <cuda_runtime.h>

#include "params.h"

namespace fastrnn::cuda {

// How the recurrent product of a step is made; plan.h chooses.
struct StepKernel {
  bool fused;         // the step's kernel makes the product itself; else it is given as `product`.
                      // Never of a cell that normalises its rows
  bool tensor_cores;  // fused: mma (16-bit types, or fp32 rounded to tf32); else multiply-adds
  int rows;           // fused: batch rows of a block; mma 8 or 32, multiply-adds 8, or fp32 16
};

// `cell` is a position in cells.def, or a user's cell. cudaErrorInvalidValue if there is no such
// cell, type or kernel.
cudaError_t launch_forward(int cell, Dtype dtype, const StepKernel& kernel, const ForwardStep& step,
                           cudaStream_t stream);
cudaError_t launch_backward(int cell, Dtype dtype, const StepKernel& kernel,
                            const BackwardStep& step, cudaStream_t stream);

// Forward with an operand mask: `operand` of this step's rows, from the output and h0.
cudaError_t launch_mask_operand(Dtype dtype, const ForwardStep& step, cudaStream_t stream);

// Projected LSTM, backward: grad_projected of this step's rows from grad_output, and product or
// grad_hn; grad_h0 of the rows that have left their first step.
cudaError_t launch_gather_projected(Dtype dtype, const BackwardStep& step, cudaStream_t stream);

// The moments of all rows at the steps -1 .. T: (D, T + 2, B), a byte each.
cudaError_t write_moments(uint8_t* to, const RowSchedule& schedule, int64_t batch,
                          int64_t directions, cudaStream_t stream);

// What inst/*.cu instantiate, one file a cell.
template <class Cell, class Scalar>
cudaError_t forward_step(const StepKernel& kernel, const ForwardStep& step, cudaStream_t stream);
template <class Cell, class Scalar>
cudaError_t backward_step(const StepKernel& kernel, const BackwardStep& step, cudaStream_t stream);

}  // namespace fastrnn::cuda
