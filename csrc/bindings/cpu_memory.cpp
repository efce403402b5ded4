#include "cpu_memory.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/Allocator.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fastrnn {
namespace {

constexpr size_t kLeast = 1 << 16;  // bytes; below, the C library keeps what is freed
constexpr size_t kPage = 1 << 12, kHugePage = 1 << 21;

struct Block {
  void *memory, *data;
  size_t size, used;
};

// Blocks come in so many sizes that sequences of about the same length share theirs: eight between
// one power of two and the next.
size_t rounded(size_t bytes) {
  size_t step = kPage;
  while (step * 16 <= bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

// Null if there is no memory.
Block* allocate_block(size_t size) {
  static std::atomic<size_t> count = 0;
  const size_t alignment = size >= kHugePage ? kHugePage : kPage;
  // Blocks begin on different cache lines of a page: the same place of several is used at a time,
  // and should not fall into the same set of a cache.
  const size_t shift = count++ % 8 * (kPage / 8);
  const size_t whole = (size + kPage + alignment - 1) / alignment * alignment;
  void* const memory = std::aligned_alloc(alignment, whole);
  if (!memory) return nullptr;
#ifdef __linux__
  // A wish: where it is refused, the pages are small ones.
  if (size >= kHugePage)
    static_cast<void>(madvise(memory, size / kHugePage * kHugePage, MADV_HUGEPAGE));
#endif
  return new Block{memory, static_cast<char*>(memory) + shift, size, 0};
}

void free_block(Block* block) {
  std::free(block->memory);
  delete block;
}

// The freed blocks, oldest first. Whoever finds it locked does without, so that a child forked
// while it was cannot wait for ever.
class Cache {
 public:
  Block* take(size_t size) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    for (size_t i = blocks_.size(); i-- > 0;) {  // the latest may still be in the CPU's caches
      if (blocks_[i]->size != size) continue;
      Block* const block = blocks_[i];
      blocks_.erase(blocks_.begin() + i);
      bytes_ -= size;
      return block;
    }
    return nullptr;
  }

  void give(Block* block) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || block->size > limit) return free_block(block);
    blocks_.push_back(block);
    bytes_ += block->size;
    shrink(limit);
  }

  void empty() {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock) shrink(0);
  }

  size_t bytes() const { return bytes_; }

  const size_t limit = [] {
    const char* const text = std::getenv("FASTRNN_CPU_CACHE_MB");
    if (!text || !*text) return size_t(256) << 20;
    const std::string digits = text;
    TORCH_CHECK(digits.size() < 8 && digits.find_first_not_of("0123456789") == std::string::npos,
                "FASTRNN_CPU_CACHE_MB: expected a whole number of MiB, got '", digits, "'");
    return size_t(std::stoul(digits)) << 20;
  }();

 private:
  void shrink(size_t most) {
    while (bytes_ > most) {
      bytes_ -= blocks_.front()->size;
      free_block(blocks_.front());
      blocks_.erase(blocks_.begin());
    }
  }

  std::mutex mutex_;
  std::vector<Block*> blocks_;
  std::atomic<size_t> bytes_ = 0;  // changed under the lock
};

// Never destroyed: tensors may be freed after static objects are.
Cache& cache() {
  static Cache* const one = new Cache;
  return *one;
}

class BlockAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const size_t size = rounded(bytes);
    Block* block = cache().take(size);
    if (!block) block = allocate_block(size);
    if (!block) {
      cache().empty();
      block = allocate_block(size);
    }
    TORCH_CHECK(block, "fastrnn: not enough memory: tried to allocate ", bytes, " bytes");
    block->used = bytes;
    report(block->data, int64_t(bytes));
    return {block->data, block, &release, at::kCPU};
  }
  void copy_data(void* to, const void* from, size_t count) const override {
    default_copy_data(to, from, count);
  }

 private:
  static void release(void* context) {
    Block* const block = static_cast<Block*>(context);
    report(block->data, -int64_t(block->used));
    cache().give(block);
  }
  static void report(void* data, int64_t bytes) {
    if (c10::memoryProfilingEnabled())
      c10::reportMemoryUsageToProfiler(data, bytes, 0, 0, at::kCPU);
  }
};

}  // namespace

at::Tensor empty_block(at::IntArrayRef sizes, const at::TensorOptions& options) {
  static BlockAllocator* const allocator = new BlockAllocator;
  const size_t bytes = c10::multiply_integers(sizes) * options.dtype().itemsize();
  if (bytes < kLeast) return at::empty(sizes, options);
  return at::detail::empty_generic(sizes, allocator, c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   options.dtype().toScalarType(), std::nullopt);
}

at::Tensor dense(const at::Tensor& tensor) {
  if (tensor.is_contiguous() || !tensor.is_cpu()) return tensor;
  return empty_block(tensor.sizes(), tensor.options()).copy_(tensor);
}

int64_t cached_bytes() { return int64_t(cache().bytes()); }

int64_t cache_limit() { return int64_t(cache().limit); }

}  // namespace fastrnn
