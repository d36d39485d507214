#include "common/cpu/scratch.h"

#include <cstdlib>
#include <memory>
#include <new>

#include "common/cpu/pages.h"

namespace fastdl::cpu {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

void* allocated(size_t bytes) {
  void* memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

struct Scratch {
  std::unique_ptr<void, Free> memory;
  size_t capacity = 0;

  void* of(size_t bytes) {
    if (bytes > capacity) {
      const size_t rounded = (bytes + 4095) / 4096 * 4096;
      memory.reset();
      capacity = 0;
      memory.reset(allocated(rounded));
      capacity = rounded;
    }
    return memory.get();
  }
};

}  // namespace

void* thread_scratch(size_t bytes) {
  thread_local Scratch scratch;
  return scratch.of(bytes);
}

OperatorScratch::OperatorScratch(size_t bytes) {
  constexpr size_t kKept = size_t{1} << 23;
  thread_local Scratch scratch;
  kept_ = bytes <= kKept;
  memory_ = kept_ ? scratch.of(bytes) : allocated(bytes);
  if (!kept_) use_huge_pages(memory_, bytes);
}

OperatorScratch::~OperatorScratch() {
  if (!kept_) std::free(memory_);
}

}  // namespace fastdl::cpu
