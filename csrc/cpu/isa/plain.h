// Any CPU: 128-bit vectors, which the compiler maps to SSE2 or NEON.
// The level, for all that a file includes after this.
#pragma once

#define FASTRNN_ISA plain
#define FASTRNN_LEVEL 0
