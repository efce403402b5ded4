// AVX2 with FMA and half-precision conversion.
// The level, for all that a file includes after this.
#pragma once

#pragma GCC target("avx2,fma,f16c")
#ifndef FASTRNN_ISA
#define FASTRNN_ISA avx2
#endif
#define FASTRNN_LEVEL 1
