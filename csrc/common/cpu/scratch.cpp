#include "common/cpu/scratch.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace fastdl::cpu {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

struct Scratch {
  std::unique_ptr<void, Free> memory;
  size_t capacity = 0;

  void* of(size_t bytes) {
    if (bytes > capacity) {
      const size_t rounded = (bytes + 4095) / 4096 * 4096;
      memory.reset();
      capacity = 0;
      memory.reset(std::aligned_alloc(64, rounded));
      if (!memory) throw std::bad_alloc();
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

void* operator_scratch(size_t bytes) {
  thread_local Scratch scratch;
  return scratch.of(bytes);
}

}  // namespace fastdl::cpu
