// Any CPU: 128-bit vectors, which the compiler maps to SSE2 or NEON.
#include "levels.h"

#include "plain.h"

#include "../layer.h"

fastrnn::cpu::Kernels fastrnn::cpu::plain_kernels() { return plain::make_kernels(); }
