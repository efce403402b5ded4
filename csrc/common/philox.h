// Random numbers without a state: Philox4x32-7 (Salmon et al. 2011), of as many rounds as its
// authors found to pass every test of BigCrush. What depends on a step, a row and a unit alone
// comes out the same wherever and whenever it is computed.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace fastrnn {

FASTRNN_HD void multiply_words(uint32_t a, uint32_t b, uint32_t* high, uint32_t* low) {
  const uint64_t product = uint64_t(a) * b;
  *high = uint32_t(product >> 32);
  *low = uint32_t(product);
}

constexpr int kRounds = 7;

// Four words of a counter, in its place. A Word is a uint32_t, or a vector of them with ^ and
// multiply_words.
template <class Word>
FASTRNN_HD void philox(Word* counter, uint64_t key) {
  uint32_t key0 = uint32_t(key), key1 = uint32_t(key >> 32);
  for (int round = 0; round < kRounds; ++round) {
    Word high0, low0, high1, low1;
    multiply_words(counter[0], 0xD2511F53u, &high0, &low0);
    multiply_words(counter[2], 0xCD9E8D57u, &high1, &low1);
    counter[0] = high1 ^ counter[1] ^ Word(key0);
    counter[1] = low1;
    counter[2] = high0 ^ counter[3] ^ Word(key1);
    counter[3] = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// What happens at a rate happens where the upper kChanceBits bits of a word, as a number, are below
// the threshold.
constexpr int kChanceBits = 24;
constexpr uint32_t threshold_of(double rate) { return uint32_t(rate * (1 << kChanceBits) + 0.5); }

}  // namespace fastrnn
