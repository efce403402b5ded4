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

const Kernels& kernels(Dtype dtype);

// Whether torch multiplies bfloat16 in less time than it converts to float32 and back: on x86 with
// AVX-512 alone (benchmarks/NOTES.md).
bool multiplies_bfloat16();

// The kernel for products of a storage type with so many results, each a sum of `depth` products;
// or null where torch's BLAS is at least as fast.
ProductKernel product_kernel(Dtype dtype, int64_t results, int64_t depth);

}  // namespace fastrnn::cpu
