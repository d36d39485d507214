#include "common/cpu/scratch.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace fastdl::cpu {
namespace {
struct Free {
  void operator()(void* p) const { std::free(p); }
};
}  // namespace

void* thread_scratch(size_t bytes) {
  thread_local std::unique_ptr<void, Free> memory;
  thread_local size_t capacity = 0;
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

}  // namespace fastdl::cpu
