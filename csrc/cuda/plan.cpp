#include "plan.h"

#include "../cells/user_cells.h"

namespace fastrnn::cuda {

namespace {

// The one number behind the choice. A fused step reads the weights once for every tile of batch
// rows; a library product reads them about once, and costs a launch more. The fused step is chosen
// while what it reads again stays below this: what an L2 cache delivers in about the time of a
// launch. Reckoned from peak figures, not measured.
constexpr int64_t kRereadBytes = int64_t{8} << 20;

}  // namespace

StepKernel plan(const PlanQuery& q) {
  const StepKernel library{false, false, 0};
  const bool half_width = q.dtype == Dtype::kBfloat16 || q.dtype == Dtype::kFloat16;
  const bool tf32 = q.dtype == Dtype::kFloat32 && q.tf32 && q.capability >= 80;
  if (!info_of(q.cell).recurrent) return library;      // whose product there is none to make
  if (info_of(q.cell).statistics > 0) return library;  // a norm needs the products of a whole row
  // A fused step reads h as the output has it.
  if (q.masked && !q.backward) return library;
  // Turing's tensor cores know fp16 alone.
  if (q.dtype == Dtype::kBfloat16 && q.capability < 80) return library;
  // A projected LSTM's backward has a second product between the first and the update.
  if (q.backward && q.recurrent != q.hidden) return library;

  StepKernel fused{true, half_width || tf32, 8};
  if (q.batch > 8 && fused.tensor_cores) fused.rows = 32;
  if (q.batch > 8 && !fused.tensor_cores && q.dtype == Dtype::kFloat32) fused.rows = 16;
  const int64_t weights =
      q.directions * info_of(q.cell).gates * q.hidden * q.recurrent * bytes(q.dtype);
  const int64_t again = (q.batch + fused.rows - 1) / fused.rows - 1;
  return again * weights <= kRereadBytes ? fused : library;
}

}  // namespace fastrnn::cuda
