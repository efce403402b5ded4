// Any CPU: kernels of frozen stacks.
#include "frozen_levels.h"

#include "plain.h"

#include "../frozen_kernels.h"

fastrnn::cpu::FrozenKernels fastrnn::cpu::plain_frozen(FrozenType type) {
  return plain::frozen_kernels_of(type);
}
