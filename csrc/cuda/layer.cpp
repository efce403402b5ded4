#include "layer.h"

#include <algorithm>

#include "../cells/user_cells.h"

namespace fastrnn::cuda {

namespace {

// Rows of an array of equal rows, as a matrix.
struct Rowwise {
  void* data;
  int64_t cols, stride, scalar;
  Matrix rows(int64_t first, int64_t count) const {
    return {static_cast<char*>(data) + first * stride * scalar, count, cols, stride};
  }
};

// A view that a product only reads.
Rowwise view(const void* data, int64_t cols, int64_t stride, int64_t scalar) {
  return {const_cast<void*>(data), cols, stride, scalar};
}

std::string describe(const char* pass, int cell, Dtype dtype, const StepKernel& kernel,
                     const Shape& s, int64_t position, int64_t steps) {
  static constexpr const char* kNames[] = {"float64", "float32", "bfloat16", "float16"};
  std::string form = "update after a library product";
  if (kernel.fused) {
    form = std::string(kernel.tensor_cores ? "fused mma" : "fused fma") + ", " +
           std::to_string(kernel.rows) + " rows a block";
  }
  return std::string(info_of(cell).mode) + " " + pass + " step (" + form + ", " +
         kNames[static_cast<int>(dtype)] + ") at position " + std::to_string(position) + " of " +
         std::to_string(steps) + " with B = " + std::to_string(s.batch) +
         ", H = " + std::to_string(s.hidden) + ", R = " + std::to_string(s.recurrent) +
         ", D = " + std::to_string(s.directions);
}

// What a step knows of its time.
template <class Step>
void set_step(const Schedule& schedule, int d, int64_t position, Step& step) {
  step.step_rows[d] = schedule.step_rows(d, position);
  step.time[d] = step.zoneout.first_step + schedule.time(d, position);
}

// product[d] = h of the step before, times W_hh^T: from the operand where h is masked; else from
// the output, and from h0 for rows that start, which is kept where later steps need it too. Nothing
// without W_hh.
void recurrent_product(const LayerForward& layer, const ForwardStep& step, int d,
                       Library& library) {
  const Shape& s = step.shape;
  const StepRows& step_rows = step.step_rows[d];
  const int64_t scalar = bytes(layer.dtype), G = info_of(layer.cell).gates, R = s.recurrent;
  const auto out = view(step.product, G * s.hidden, G * s.hidden, scalar);
  const auto out_h0 = step.product_h0 ? view(step.product_h0, out.cols, out.stride, scalar) : out;
  const auto h0 = view(step.states.initial[0], R, R, scalar);
  const auto output = view(step.output, s.directions * R, s.directions * R, scalar);
  const Matrix w_hh = view(step.w_hh[d], R, R, scalar).rows(0, G * s.hidden);
  if (step.operand) {
    const auto operand = view(step.operand, R, R, scalar);
    library.product(out.rows(d * s.batch, step_rows.now.count),
                    operand.rows(d * s.batch, step_rows.now.count), w_hh, Transpose::kRight, false);
    return;
  }
  if (!info_of(layer.cell).recurrent) return;
  const int64_t going = std::min(step_rows.before.count, step_rows.now.count);
  if (going > 0) {
    Matrix h = output.rows(step_rows.before.offset, going);
    h.data = static_cast<char*>(h.data) + d * R * scalar;
    h.cols = R;
    library.product(out.rows(d * s.batch, going), h, w_hh, Transpose::kRight, false);
  }
  if (const int64_t starting = step_rows.now.count - going; starting > 0) {
    const int64_t first = d * s.batch + going;
    library.product(out_h0.rows(first, starting), h0.rows(first, starting), w_hh, Transpose::kRight,
                    false);
  }
}

// output and hn of this step, from h before projection.
cudaError_t project(const LayerForward& layer, const ForwardStep& step, int d, void* hn,
                    Library& library, cudaStream_t stream) {
  const Shape& s = step.shape;
  const StepRows& step_rows = step.step_rows[d];
  const int64_t scalar = bytes(layer.dtype), R = s.recurrent;
  const auto output = view(step.output, s.directions * R, s.directions * R, scalar);
  Matrix out = output.rows(step_rows.now.offset, step_rows.now.count);
  out.data = static_cast<char*>(out.data) + d * R * scalar;
  out.cols = R;
  const auto h = view(step.h[d], s.hidden, step.h_stride, scalar);
  library.product(out, h.rows(step_rows.now.offset, step_rows.now.count),
                  view(layer.w_hr[d], s.hidden, s.hidden, scalar).rows(0, R), Transpose::kRight,
                  false);
  const int64_t ending = step_rows.now.count - std::min(step_rows.after.count, step_rows.now.count);
  if (ending == 0 || layer.lengths) return cudaSuccess;
  const int64_t first = step_rows.now.count - ending;
  return cudaMemcpy2DAsync(static_cast<char*>(hn) + (d * s.batch + first) * R * scalar, R * scalar,
                           static_cast<char*>(out.data) + first * out.stride * scalar,
                           out.stride * scalar, R * scalar, ending, cudaMemcpyDeviceToDevice,
                           stream);
}

}  // namespace

Status run(const LayerForward& layer, Library& library, cudaStream_t stream) {
  if (layer.resident.team.tier != Tier::kStep) return run_resident(layer, stream);
  ForwardStep step = layer.step;
  const Shape& s = step.shape;
  const bool projected = layer.w_hr[0] != nullptr;
  if (projected) step.states.last[0] = nullptr;
  for (int64_t position = 0; position < layer.schedule.steps(); ++position) {
    for (int d = 0; d < s.directions; ++d) set_step(layer.schedule, d, position, step);
    cudaError_t error = cudaSuccess;
    if (step.operand) error = launch_mask_operand(layer.dtype, step, stream);
    for (int d = 0; !layer.kernel.fused && d < s.directions && error == cudaSuccess; ++d)
      recurrent_product(layer, step, d, library);
    if (error == cudaSuccess)
      error = launch_forward(layer.cell, layer.dtype, layer.kernel, step, stream);
    for (int d = 0; projected && d < s.directions && error == cudaSuccess; ++d) {
      error = project(layer, step, d, layer.step.states.last[0], library, stream);
    }
    if (error != cudaSuccess) {
      return {error, describe("forward", layer.cell, layer.dtype, layer.kernel, s, position,
                              layer.schedule.steps())};
    }
  }
  return {};
}

Status run(const LayerBackward& layer, Library& library, cudaStream_t stream) {
  if (layer.resident.team.tier != Tier::kStep) return run_resident(layer, stream);
  BackwardStep step = layer.step;
  const Shape& s = step.shape;
  const int64_t scalar = bytes(layer.dtype), K = info_of(layer.cell).gates * s.hidden,
                R = s.recurrent;
  const bool projected = layer.w_hr[0] != nullptr;
  const auto product = view(step.product, R, R, scalar);
  const auto grad_gates = view(step.grad_h_gates, K, K, scalar);
  const auto grad_full = view(step.grad_full, s.hidden, s.hidden, scalar);
  const auto grad_projected = view(step.grad_projected, R, R, scalar);
  // Position -1 has no rows of its own: there the last rows hand their gradient on to h0.
  for (int64_t position = layer.schedule.steps() - 1; position >= (layer.grad_h0 ? -1 : 0);
       --position) {
    for (int d = 0; d < s.directions; ++d) {
      set_step(layer.schedule, d, position, step);
      const StepRows& step_rows = step.step_rows[d];
      if (layer.kernel.fused || !info_of(layer.cell).recurrent || step_rows.after.count == 0)
        continue;
      library.product(product.rows(d * s.batch, step_rows.after.count),
                      grad_gates.rows(d * s.total + step_rows.after.offset, step_rows.after.count),
                      view(layer.w_hh[d], R, R, scalar).rows(0, K), Transpose::kNeither, false);
    }
    cudaError_t error = cudaSuccess;
    if (projected) error = launch_gather_projected(layer.dtype, step, stream);
    for (int d = 0; projected && d < s.directions && error == cudaSuccess; ++d) {
      const Rows& now = step.step_rows[d].now;
      if (now.count == 0) continue;
      library.product(grad_full.rows(d * s.batch, now.count),
                      grad_projected.rows(d * s.total + now.offset, now.count),
                      view(layer.w_hr[d], s.hidden, s.hidden, scalar).rows(0, R),
                      Transpose::kNeither, false);
    }
    if (error == cudaSuccess)
      error = launch_backward(layer.cell, layer.dtype, layer.kernel, step, stream);
    if (error != cudaSuccess) {
      return {error, describe("backward", layer.cell, layer.dtype, layer.kernel, s, position,
                              layer.schedule.steps())};
    }
  }
  return {};
}

}  // namespace fastrnn::cuda
