// Any CPU: kernels of frozen stacks.
#include "frozen_levels.h"

#include "plain.h"

#include "../frozen_kernels.h"

namespace fastrnn::cpu {
FrozenKernels plain_frozen(FrozenType type) { return plain::frozen_kernels_of(type); }
}  // namespace fastrnn::cpu
