#include "frozen.h"

#include <cstring>

#include "../cells/cell_info.h"

namespace fastrnn::cpu {
namespace {

struct Header {
  static constexpr uint64_t kMagic = 0x316e7a7266726e72;
  uint64_t magic = kMagic;
  int32_t version = 1, lanes = kFrozenLanes;
  FrozenShape shape;
};
constexpr size_t kHeaderBytes = 64;
static_assert(sizeof(Header) <= kHeaderBytes);

int64_t values_per_step(FrozenType type) {
  return type == FrozenType::kFloat32 ? 1 : type == FrozenType::kBfloat16 ? 2 : 4;
}

FrozenMatrix place(FrozenType type, int gates, int64_t units, int64_t inputs, size_t at) {
  FrozenMatrix m{};
  m.gates = gates;
  m.units = units;
  m.inputs = inputs;
  const int64_t values = values_per_step(type), columns = gates * frozen_padded(units);
  m.steps = (inputs + values - 1) / values;
  m.panel_bytes = m.steps * gates * kFrozenLanes * 4;
  m.panels = at;
  m.bias = m.panels + size_t(frozen_padded(units) / kFrozenLanes * m.panel_bytes);
  m.scales = m.bias + size_t(columns) * sizeof(float);
  const size_t quantised = type == FrozenType::kInt8 ? size_t(columns) * sizeof(float) : 0;
  m.sums = m.scales + quantised;
  m.end = m.sums + quantised;
  return m;
}

FrozenDirection place_direction(const FrozenShape& s, int64_t inputs, size_t at) {
  const int gates = kCells[s.cell].gates;
  FrozenDirection d;
  d.w_ih = place(s.type, gates, s.H, inputs, at);
  d.w_hh = place(s.type, gates, s.H, s.R, d.w_ih.end);
  d.w_hr = place(s.type, 1, s.R == s.H ? 0 : s.R, s.H, d.w_hh.end);
  return d;
}

}  // namespace

bool frozen_serves(const FrozenShape& s) {
  constexpr int kLstm = 0, kGru = 1, kRnnRelu = 3;
  const bool int8 = s.type == FrozenType::kInt8, projected = s.R != s.H;
  return s.cell >= kLstm && s.cell <= (int8 ? kGru : kRnnRelu) && s.type >= FrozenType::kFloat32 &&
         s.type <= FrozenType::kInt8 && (!projected || (s.cell == kLstm && !int8)) &&
         s.layers >= 1 && (s.D == 1 || s.D == 2) && s.I >= 0 && s.H >= 1 && s.R >= 1 && s.R <= s.H;
}

FrozenDirection frozen_direction(const FrozenShape& s, int layer, int direction) {
  const auto inputs = [&](int of) { return of == 0 ? s.I : s.D * s.R; };
  const auto bytes = [&](int of) { return place_direction(s, inputs(of), 0).w_hr.end; };
  size_t at = kHeaderBytes;
  if (layer > 0) at += size_t(s.D) * (bytes(0) + size_t(layer - 1) * bytes(1));
  if (direction > 0) at += size_t(direction) * bytes(layer);
  return place_direction(s, inputs(layer), at);
}

size_t frozen_bytes(const FrozenShape& s) {
  return frozen_direction(s, s.layers - 1, s.D - 1).w_hr.end;
}

void write_header(const FrozenShape& shape, char* packed) {
  std::memset(packed, 0, kHeaderBytes);
  Header header;
  header.shape = shape;
  std::memcpy(packed, &header, sizeof header);
}

bool read_header(const char* packed, size_t bytes, FrozenShape* shape) {
  if (bytes < kHeaderBytes) return false;
  Header header;
  const Header expected{};
  std::memcpy(&header, packed, sizeof header);
  *shape = header.shape;
  return header.magic == Header::kMagic && header.version == expected.version &&
         header.lanes == expected.lanes && frozen_serves(*shape) && bytes == frozen_bytes(*shape);
}

void pack_frozen(FrozenType type, const FrozenMatrix& m, const FrozenSource& source, char* packed) {
  const int64_t values = values_per_step(type), size = 4 / values;
  const int64_t blocks = frozen_padded(m.units) / kFrozenLanes;
  std::memset(packed + m.panels, 0, m.end - m.panels);
  for (int64_t block = 0; block < blocks; ++block) {
    for (int g = 0; g < m.gates; ++g) {
      for (int lane = 0; lane < kFrozenLanes; ++lane) {
        const int64_t unit = block * kFrozenLanes + lane;
        if (unit >= m.units) break;
        const int64_t row = g * m.units + unit;
        const int64_t column = (block * m.gates + g) * kFrozenLanes + lane;
        const char* const from = (const char*)source.weights + row * m.inputs * size;
        char* const to = packed + m.panels + block * m.panel_bytes;
        for (int64_t k = 0; k < m.inputs; ++k) {
          const int64_t step = k / values * m.gates + g;
          std::memcpy(to + (step * kFrozenLanes + lane) * 4 + k % values * size, from + k * size,
                      size_t(size));
        }
        if (source.bias) ((float*)(packed + m.bias))[column] = source.bias[row];
        if (type != FrozenType::kInt8) continue;
        int32_t sum = 0;
        for (int64_t k = 0; k < m.inputs; ++k) sum += ((const int8_t*)from)[k];
        ((float*)(packed + m.scales))[column] = source.scales[row];
        ((int32_t*)(packed + m.sums))[column] = 128 * sum;
      }
    }
  }
}

}  // namespace fastrnn::cpu
