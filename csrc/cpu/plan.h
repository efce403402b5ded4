// How a layer call is divided among threads. A pure function of sizes; no instruction set, no data.
#pragma once

#include "params.h"

namespace fastrnn::cpu {

constexpr double kNearCache = 1280 * 1024;  // bytes of weights up to which they stay near a core

// What one time step of one direction costs, from which the plan is chosen.
struct StepWork {
  double macs_per_row;    // multiply-adds of the recurrent product, per batch row
  double macs_per_cycle;  // of one core
  double least_rows;      // fewer rows than these take as long
  double weight_bytes;    // packed weights that a step reads
  int64_t unit_vectors;   // vectors of hidden units
  int64_t widest_block;   // how many of them a block takes
  int64_t most_slices;    // the finest division of them
};

// The vectors of units in a block: as many as it takes, or fewer where there would not be a block
// for each slice.
int64_t block_vectors(int64_t unit_vectors, int64_t widest, int64_t slices);

// Directions are divided among teams where there are threads for several. A team cuts the batch
// into slices that never meet (no barrier), and each slice's hidden units into slices that wait for
// each other after every step.
struct Plan {
  int threads;
  int direction_teams;  // a divisor of D; 1: every thread serves all directions in turn
  int batch_slices;
  int unit_slices;
};

Plan make_plan(const LayerShape& shape, const StepWork& work, int threads);

// The part of one direction that a thread works on.
struct Share {
  bool active;
  int batch_slice, unit_slice;
};

Share share_of(const Plan& plan, int thread, int direction);

}  // namespace fastrnn::cpu
