// Any CPU: kernels of frozen stacks.
#include "frozen_levels.h"

#include "plain.h"

#include "../frozen_kernels.h"

namespace fastrnn::cpu {
FrozenKernels plain_frozen() { return plain::frozen_kernels_of<false>(); }
}  // namespace fastrnn::cpu
