// The tile registers of x86 CPUs (AMX): eight of up to 16 rows of 64 bytes. A product adds to one
// the rows of a second times the columns of a third, of which a row has what fills 32 bits of each
// column: two bfloat16 or four bytes.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace fastrnn::cpu {

// As the instruction reads it.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  FASTRNN_HD void set(int tile, int count, int bytes) {
    rows[tile] = uint8_t(count);
    row_bytes[tile] = uint16_t(bytes);
  }
};

}  // namespace fastrnn::cpu

#ifdef FASTRNN_TILES
#include FASTRNN_TILES
#else
namespace fastrnn::cpu::tiles {

// Loads, stores and products do not name the memory and the tiles they use: the compiler keeps them
// in their order, and order_memory() keeps other accesses to memory out of them.
FASTRNN_HD void order_memory() { asm volatile("" ::: "memory"); }

FASTRNN_HD void configure(const TileConfig& config) {
  asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
}
FASTRNN_HD void release() { asm volatile("tilerelease"); }

template <int kTile>
FASTRNN_HD void zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
// Rows `stride` bytes apart.
template <int kTile>
FASTRNN_HD void load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile));
}
template <int kTile>
FASTRNN_HD void store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile));
}

template <int kSum, int kRows, int kColumns>
FASTRNN_HD void add_bfloat16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kRows), "i"(kColumns));
}
// Rows of uint8, columns of int8, sums of int32.
template <int kSum, int kRows, int kColumns>
FASTRNN_HD void add_bytes() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kRows), "i"(kColumns));
}

}  // namespace fastrnn::cpu::tiles
#endif
