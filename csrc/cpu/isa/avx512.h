// AVX512 (F, BW, VL, DQ).
// The level, for all that a file includes after this.
#pragma once

#pragma GCC target("prfchw")
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#ifndef FASTRNN_ISA
#define FASTRNN_ISA avx512
#endif
#define FASTRNN_LEVEL 2
