// Stands for the CPU's tile registers (AMX), which few machines have: included before csrc/cpu/isa/
// amx_bf16.cpp and dispatch.cpp, so that the kernels for them run under the sanitizers everywhere.
// Loads and stores are plain ones, which AddressSanitizer sees, as it does not those of AMX.
#pragma once

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulated_tiles {

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

// The 64 bytes that the instruction reads: palette, start row, 14 reserved, 16 x 2 row bytes, 16
// rows.
inline void configure(const void* from) {
  unsigned char bytes[64];
  std::memcpy(bytes, from, sizeof bytes);
  expect(bytes[0] == 1, "the palette is 1");
  for (int i = 0; i < 8; ++i) {
    state.row_bytes[i] = bytes[16 + 2 * i] | bytes[17 + 2 * i] << 8;
    state.rows[i] = bytes[48 + i];
    expect(state.rows[i] <= kRows && state.row_bytes[i] <= kRowBytes, "a tile is too large");
  }
  std::memset(state.data, 0, sizeof state.data);
  state.configured = true;
}

inline void load(int tile, const void* from, int64_t stride) {
  expect(state.configured && state.rows[tile] > 0, "load of a tile that is not configured");
  std::memset(state.data[tile], 0, sizeof state.data[tile]);
  for (int r = 0; r < state.rows[tile]; ++r)
    std::memcpy(state.data[tile][r], (const char*)from + r * stride, state.row_bytes[tile]);
}

inline void store(int tile, void* to, int64_t stride) {
  expect(state.configured && state.rows[tile] > 0, "store of a tile that is not configured");
  for (int r = 0; r < state.rows[tile]; ++r)
    std::memcpy((char*)to + r * stride, state.data[tile][r], state.row_bytes[tile]);
}

inline float widened(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// sum[m][n] += a[m][2k] * b[k][2n] + a[m][2k + 1] * b[k][2n + 1]
inline void add_bfloat16_products(int sum, int a, int b) {
  State& s = state;
  expect(s.configured && s.rows[sum] == s.rows[a] && s.row_bytes[a] == 4 * s.rows[b] &&
             s.row_bytes[sum] == s.row_bytes[b],
         "the shapes of a product differ");
  for (int m = 0; m < s.rows[sum]; ++m) {
    float sums[kRowBytes / 4];
    uint16_t left[kRowBytes / 2], right[kRowBytes / 2];
    std::memcpy(sums, s.data[sum][m], sizeof sums);
    std::memcpy(left, s.data[a][m], sizeof left);
    for (int k = 0; k < s.rows[b]; ++k) {
      std::memcpy(right, s.data[b][k], sizeof right);
      for (int n = 0; n < s.row_bytes[sum] / 4; ++n)
        for (int i = 0; i < 2; ++i) sums[n] += widened(left[2 * k + i]) * widened(right[2 * n + i]);
    }
    std::memcpy(s.data[sum][m], sums, sizeof sums);
  }
}

inline int cpuid(unsigned leaf, unsigned subleaf, unsigned* a, unsigned* b, unsigned* c,
                 unsigned* d) {
  const int found = __get_cpuid_count(leaf, subleaf, a, b, c, d);
  if (leaf == 7) *d |= 1u << 22 | 1u << 24;  // amx-bf16, amx-tile
  return found;
}

}  // namespace emulated_tiles

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(from) emulated_tiles::configure(from)
#define _tile_release() (emulated_tiles::state.configured = false)
#define _tile_loadd(tile, from, stride) emulated_tiles::load(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated_tiles::store(tile, to, stride)
#define _tile_dpbf16ps(sum, a, b) emulated_tiles::add_bfloat16_products(sum, a, b)
#define __get_cpuid_count emulated_tiles::cpuid
#define syscall(...) 0L  // permission
