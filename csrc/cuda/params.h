// What the step kernels are told: plain structs, passed by value, readable by any compiler.
//
// Letters: T B H G D as everywhere, R the width of h (H, or P when an LSTM is projected), N the
// rows of the whole sequence (T * B, or fewer when packed), K the values a cell saves per hidden
// unit. "scalar" is the storage type of the call; "accumulate" is float, or double where scalar is
// double. All arrays are contiguous in the order given. No two fields alias unless the comment says
// so.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../common/layer_spec.h"
#include "row_schedule.h"

namespace fastrnn::cuda {

constexpr int64_t bytes(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

struct Shape {
  int64_t batch;       // B
  int64_t total;       // N; D * N is below kMostRows
  int64_t hidden;      // H
  int64_t recurrent;   // R
  int64_t directions;  // D
};

// Rows are counted in 32 bits. The bindings refuse more.
constexpr int64_t kMostRows = int64_t{1} << 31;

// Row b of a step, among the D * N of the direction `d`.
FASTRNN_HD int row_of(const Shape& s, int d, const Rows& rows, int b) {
  return d * static_cast<int>(s.total) + rows.offset + b;
}

// A value in an array of rows of `width` values. A thread works out many of these in every step:
// each is two multiply-adds to 64 bits, and neighbouring columns differ by a constant.
struct Place {
  int row, width, column;

  template <class T>
  FASTRNN_HD T* in(T* array) const {
    constexpr int kBytes = sizeof(T);
    using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
    return reinterpret_cast<T*>(reinterpret_cast<Byte*>(array) + int64_t{row} * (width * kBytes) +
                                int64_t{column} * kBytes);
  }
};

// Of batch row b at a step of these rows.
template <class Step>
FASTRNN_HD Moment moment_of(const Step& p, const StepRows& step_rows, int d, int64_t b) {
  if (p.moments) {
    const Shape& s = p.shape;
    return Moment(p.moments[d * (s.total + 2 * s.batch) + s.batch + step_rows.now.offset + b]);
  }
  const int row = static_cast<int>(b);
  const bool has = row < step_rows.now.count, going = row < step_rows.before.count;
  const bool carried = row < step_rows.after.count;
  return {has, going, !going, !carried, carried, carried && !has};
}

struct ForwardStep {
  Shape shape;
  StepRows step_rows[kMostDirections];
  int64_t time[kMostDirections];  // of the step, from the beginning of the whole sequence on
  Zoneout zoneout;                // seeds on the device; never on in resident kernels
  // Read only.
  const uint8_t* moments;             // (D, T + 2, B), as write_moments() writes them; or null
  const void* x_gates;                // (D, N, G*H) scalar: the input product, without its bias
  const void* w_hh[kMostDirections];  // (G*H, R) scalar
  const void* b_ih[kMostDirections];  // (G*H) scalar, or null
  const void* b_hh[kMostDirections];  // (G*H) scalar, or null
  const void* params[kMostDirections][kMostParams];  // the cell's P, scalar: (H) each, gains (G*H)
  double scalars[kMostScalars];                      // the cell's
  const void* output;        // (N, D*R) scalar: earlier steps are read, h is where this one goes
  const void* operand_mask;  // (D, B, R) scalar: what h is multiplied with before W_hh; or null
  // Written, but for `initial`. last[0] is null where h is projected and not known yet; carried may
  // be (D, B, S - 1, H), updated in place.
  ForwardStates states;
  int64_t carried_rows;  // N or B: which of the two
  void* product;         // (D, B, G*H) scalar: h W_hh^T, put there before the launch; GEMM form
  void* product_h0;      // the same of h0, if rows start at different steps; else null
  void* operand;         // (D, B, R) scalar: the masked h that `product` is of, put there before
                         // it; null without a mask or a product, and in resident kernels
  void* h[kMostDirections];  // row 0 of the direction's h: into `output`, or (N, H) if projected
  int64_t h_stride;          // elements between two rows of h
  void* saved;               // (D, N, K, H) scalar, or null. May be x_gates when K == G
  void* given;  // (D, N, F, H) accumulate, with zoneout: the states that backward reads after the
                // step, as the cell gave them; or null
  // Of cells that normalise their rows; K is then kSavedWithNorms (cells/cell.h).
  void* statistics;  // (D, N, 2 or 4) accumulate; null when not saved
  void* emitting;    // (D, B, 2, H) accumulate, scratch, where a state is normalised: what h' is
                     // made of, and the state, until its norm is known; else null
};

struct BackwardStep {
  Shape shape;
  StepRows step_rows[kMostDirections];  // as forward's, last to first
  int64_t time[kMostDirections];        // as forward's
  Zoneout zoneout;
  // Read only.
  const uint8_t* moments;               // as forward's
  const void* w_hh_t[kMostDirections];  // (R, G*H) scalar: W_hh transposed; fused form only
  const void* grad_output;              // (N, D*R) scalar
  const void* params[kMostDirections][kMostParams];  // as forward's
  double scalars[kMostScalars];
  const void* output;        // (N, D*R) scalar
  const void* saved;         // (D, N, K, H) scalar, or null
  const void* operand_mask;  // as forward's
  const void* given;         // as forward left it, or null
  const void* statistics;    // the same
  // Of these only grad_initial is written, for h alone: the others end in grad_carried. Where these
  // begin as grad_last, that is null.
  BackwardStates states;
  // Written.
  void* product;       // (D, B, R) scalar: grad_h_gates W_hh of the step after, put there
                       // before the launch; GEMM form
  void* grad_full;     // (D, B, H) scalar: gradient of h before projection, put there
                       // before the launch; or null
  void* grad_x_gates;  // (D, N, G*H) scalar
  void* grad_h_gates;  // (D, N, G*H) scalar; is grad_x_gates where the cell shares them
  void* direct;        // (D, B, H) accumulate: gradient past the gates, h' to h; or null
  void* grad_carried[kMostStates];  // (D, B, H) accumulate, by state but for h: updated in place
  void* grad_params;     // (D, B, P, H) accumulate, updated in place: begins as zero; or null. With
                         // norms b_ih and b_hh come first, and they and gains are G rows each
  void* grad_projected;  // (D, N, R) scalar: whole gradient of the projected h, or null
};

}  // namespace fastrnn::cuda
