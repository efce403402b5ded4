// A frozen stack of layers (fastrnn/inference.py): its weights are packed once into one block of
// memory, and one call computes all layers and directions. Plain pointers and sizes, no torch.
//
// Letters as in params.h, with R the width of h in every layer. Inputs, outputs and states are
// float32. A row of a call is a batch row; where rows differ in length they are sorted, longest
// first, and the number of rows per step never grows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/host_device.h"
#include "../common/layer_spec.h"

namespace fastrnn::cpu {

// What the weights are. Sums are float32, and int32 for kInt8, whose inputs are quantised to 8
// bits: x by the largest magnitude in its row, h by 1 / 127.
enum class FrozenType : int { kFloat32, kBfloat16, kInt8 };

struct FrozenShape {
  int cell;  // position in cells.def; see frozen_serves
  FrozenType type;
  int layers, D;
  int64_t I, H, R;
};

// Whether there are kernels for such a stack.
bool frozen_serves(const FrozenShape& shape);

// Inputs of a matrix of kInt8: the sums of more, of at most 255 * 127 each, may exceed 31 bits.
constexpr int64_t kMostInt8Inputs = ((int64_t(1) << 31) - 1) / (255 * 127);

// Units are packed in blocks of 16, whatever the instruction set: a step of k of one gate is a
// cache line.
constexpr int kFrozenLanes = 16;
FASTRNN_CELL int64_t frozen_padded(int64_t units) {
  return (units + kFrozenLanes - 1) / kFrozenLanes * kFrozenLanes;
}

// A matrix (gates * units, inputs) in the packed memory. Offsets are in bytes.
struct FrozenMatrix {
  int gates;
  int64_t units, inputs;
  int64_t steps;        // of k, each of as many values of k as fill 32 bits
  int64_t panel_bytes;  // of a block of units: (steps, gates, 16, values of k)
  size_t panels;        // (blocks, panel)
  size_t bias;          // (blocks, gates, 16) float32, zeros without biases
  size_t scales;        // kInt8: (blocks, gates, 16) float32, what a weight of 1 stands for
  size_t sums;          // kInt8: (blocks, gates, 16) int32, 128 times the sum of a row's weights
  size_t end;
};

struct FrozenDirection {
  FrozenMatrix w_ih, w_hh;
  FrozenMatrix w_hr;  // one gate and R units; of no units where nothing is projected
};

// Where a direction of a layer stands.
FrozenDirection frozen_direction(const FrozenShape& shape, int layer, int direction);

// Bytes of the packed memory, which begins with a header. Kernels read it from any address of a
// float: 64-byte alignment, which torch's memory has and AOTInductor's constants lack, is faster.
size_t frozen_bytes(const FrozenShape& shape);
void write_header(const FrozenShape& shape, char* packed);
// The shape in a header; returns false where these bytes have none of this version.
bool read_header(const char* packed, size_t bytes, FrozenShape* shape);

// A matrix before packing, rows by gate and unit.
struct FrozenSource {
  const void* weights;  // (gates * units, inputs) float32, bfloat16 or int8
  const float* bias;    // (gates * units), or null
  const float* scales;  // (gates * units) for kInt8
};
void pack_frozen(FrozenType type, const FrozenMatrix& matrix, const FrozenSource& source,
                 char* packed);

// Rows of the caller's: row b of step t begins at data[t * step + b * row], or if `dense` at
// data[(offsets[t] + b) * row].
template <class T>
struct FrozenRows {
  T* data;
  int64_t step, row;
  bool dense;
};

struct FrozenCall {
  FrozenShape shape;
  const char* packed;
  FrozenRows<const float> x;   // I values a row
  FrozenRows<float> output;    // D * R values a row
  float* states[kMostStates];  // (layers * D, batch, R or H), updated in place
  int64_t T, B;                // B: rows of the first step
  int64_t batch;               // of the caller: B, and rows without a step
  const int64_t* offsets;      // (T + 1), as in LayerShape
  const int64_t* order;        // (B): row b is the caller's row order[b]; or null
  int threads;                 // upper bound
  void* workspace;             // 64-byte aligned, uninitialised
};

struct FrozenKernels {
  size_t (*workspace)(const FrozenCall&);
  void (*run)(const FrozenCall&);
};

}  // namespace fastrnn::cpu
