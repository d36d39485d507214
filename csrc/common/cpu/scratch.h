// 64-byte aligned scratch memory for one call, kept by its thread for the next.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fastdl::cpu {

// At least `bytes` bytes owned by the calling thread, valid until its next call: take the memory of all
// workers at once, before the parallel region, whose bodies must not throw. Throws std::bad_alloc.
void* thread_scratch(size_t bytes);

// The same again for the time of an operator made of kernels, which take the other. Much memory is given back
// at the end.
class OperatorScratch {
 public:
  explicit OperatorScratch(size_t bytes);
  ~OperatorScratch();
  OperatorScratch(const OperatorScratch&) = delete;
  OperatorScratch& operator=(const OperatorScratch&) = delete;

  float* floats() const { return static_cast<float*>(memory_); }

 private:
  void* memory_;
  bool kept_;
};

}  // namespace fastdl::cpu
