// Which instruction set the CPU kernels use.
#pragma once

#include <string>
#include <vector>

#include "params.h"

namespace fastrnn::cpu {

// Names of the levels this machine can run, lowest first; the last one is the default.
std::vector<std::string> supported_isas();

// The level in use.
std::string isa();

// Takes another supported level into use for the calls that follow, in all threads; returns false
// and changes nothing where the machine cannot run it.
bool set_isa(const std::string& name);

// Where kernels use the CPU's products of bytes and of bfloat16. Tests ask for either form.
enum class DotProducts { kWhereFaster, kAlways, kNever };
void use_dot_products(DotProducts where);

// Whether they do, where that is faster or not.
bool uses_dot_products(bool faster = true);

// Whether the level's products of pairs of bfloat16 are faster than widening both: Intel's take as
// long as four FMAs of float32 for the work of two (benchmarks/NOTES.md).
bool multiplies_pairs_fast();

// Whether so many rows of bfloat16 meet weights as pairs; else both are widened to float32.
bool pairs_bfloat16(int64_t rows);

// Whether torch multiplies so many rows of bfloat16 in less time than it converts to float32 and
// back (benchmarks/NOTES.md).
bool multiplies_bfloat16(int64_t rows);

// For a layer with so many rows.
const Kernels& kernels(Dtype dtype, int64_t rows);

// The kernel for products of a storage type with so many results, each a sum of `depth` products;
// or null where torch's BLAS is at least as fast.
ProductKernel product_kernel(Dtype dtype, int64_t results, int64_t depth);

}  // namespace fastrnn::cpu
