#include "cpu_memory.h"

#include <ATen/Functions.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fastrnn {

at::Tensor empty_pages(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const at::Tensor tensor = at::empty(sizes, options);
#ifdef __linux__
  constexpr uintptr_t kHugePage = 1 << 21;
  if (tensor.nbytes() < 2 * kHugePage) return tensor;
  const uintptr_t begin = uintptr_t(tensor.data_ptr()), end = begin + tensor.nbytes();
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = end / kHugePage * kHugePage;
  // A wish: where it is refused, the pages are small ones.
  if (first < last) static_cast<void>(madvise((void*)first, last - first, MADV_HUGEPAGE));
#endif
  return tensor;
}

}  // namespace fastrnn
