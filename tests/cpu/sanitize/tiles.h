// Stands for the CPU's tile registers (AMX), which few machines have: csrc/cpu/tile_registers.h
// takes these in their place, so that the kernels for them run under the sanitizers everywhere, and
// dispatch.cpp finds a CPU that has them. Loads and stores are plain ones, which AddressSanitizer
// sees, as it does not those of AMX.
#pragma once
#pragma GCC push_options
#pragma GCC optimize("O2")

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace fastrnn::cpu::tiles {

constexpr int kRows = 16, kRowBytes = 64;

struct State {
  bool configured = false;
  int rows[8], row_bytes[8];
  char data[8][kRows][kRowBytes];
};
inline thread_local State state;

inline void expect(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "tiles: %s\n", what);
  std::abort();
}

inline void order_memory() {}
inline void release() { state.configured = false; }

// The 64 bytes that the instruction reads: palette, start row, 14 reserved, 16 x 2 row bytes, 16
// rows.
template <class Config>
void configure(const Config& config) {
  unsigned char bytes[64];
  static_assert(sizeof config == sizeof bytes);
  std::memcpy(bytes, &config, sizeof bytes);
  expect(bytes[0] == 1, "the palette is 1");
  for (int i = 0; i < 8; ++i) {
    state.row_bytes[i] = bytes[16 + 2 * i] | bytes[17 + 2 * i] << 8;
    state.rows[i] = bytes[48 + i];
    expect(state.rows[i] <= kRows && state.row_bytes[i] <= kRowBytes, "a tile is too large");
    expect((state.rows[i] == 0) == (state.row_bytes[i] == 0), "a tile has no rows or no columns");
  }
  std::memset(state.data, 0, sizeof state.data);
  state.configured = true;
}

template <int kTile>
void zero() {
  expect(state.configured && state.rows[kTile] > 0, "a tile is not configured");
  std::memset(state.data[kTile], 0, sizeof state.data[kTile]);
}

template <int kTile>
void load(const void* from, int64_t stride) {
  zero<kTile>();
  for (int r = 0; r < state.rows[kTile]; ++r)
    std::memcpy(state.data[kTile][r], (const char*)from + r * stride, state.row_bytes[kTile]);
}

template <int kTile>
void store(void* to, int64_t stride) {
  expect(state.configured && state.rows[kTile] > 0, "a tile is not configured");
  for (int r = 0; r < state.rows[kTile]; ++r)
    std::memcpy((char*)to + r * stride, state.data[kTile][r], state.row_bytes[kTile]);
}

// sum[m][n] += the products of the values in 32 bits of a[m][k] and of b[k][n].
template <class Sum, class Left, class Right, class Product>
void add_products(int sum, int a, int b, const Product& product) {
  constexpr int kColumns = kRowBytes / 4, kValues = 4 / int(sizeof(Left));
  State& s = state;
  expect(s.configured && s.rows[sum] == s.rows[a] && s.row_bytes[a] == 4 * s.rows[b] &&
             s.row_bytes[sum] == s.row_bytes[b],
         "the shapes of a product differ");
  for (int m = 0; m < s.rows[sum]; ++m) {
    Sum sums[kColumns];
    Left left[kColumns * kValues];
    Right right[kColumns * kValues];
    std::memcpy(sums, s.data[sum][m], sizeof sums);
    std::memcpy(left, s.data[a][m], sizeof left);
    for (int k = 0; k < s.rows[b]; ++k) {
      std::memcpy(right, s.data[b][k], sizeof right);
      for (int n = 0; n < s.row_bytes[sum] / 4; ++n)
        for (int i = 0; i < kValues; ++i)
          sums[n] += product(left[kValues * k + i], right[kValues * n + i]);
    }
    std::memcpy(s.data[sum][m], sums, sizeof sums);
  }
}

inline float widened(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}
template <int kSum, int kA, int kB>
void add_bfloat16() {
  add_products<float, uint16_t, uint16_t>(
      kSum, kA, kB, [](uint16_t a, uint16_t b) { return widened(a) * widened(b); });
}
template <int kSum, int kA, int kB>
void add_bytes() {
  add_products<int32_t, uint8_t, int8_t>(kSum, kA, kB,
                                         [](uint8_t a, int8_t b) { return int32_t(a) * b; });
}

inline int cpuid(unsigned leaf, unsigned subleaf, unsigned* a, unsigned* b, unsigned* c,
                 unsigned* d) {
  const int found = __get_cpuid_count(leaf, subleaf, a, b, c, d);
  if (leaf == 7) *d |= 1u << 22 | 1u << 24 | 1u << 25;  // amx-bf16, amx-tile, amx-int8
  return found;
}

}  // namespace fastrnn::cpu::tiles
#pragma GCC pop_options

#define __get_cpuid_count fastrnn::cpu::tiles::cpuid
#define syscall(...) 0L  // permission
