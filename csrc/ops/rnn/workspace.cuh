// One allocation cut into arrays that start at 256 bytes; without memory it only counts.
#pragma once
#include "common/cuda/scalar.cuh"

namespace fastdl::cuda {

class Workspace {
 public:
  explicit Workspace(void* memory) : memory_(static_cast<char*>(memory)) {}
  template <class T>
  T* take(int64_t count) {
    char* begin = memory_ ? memory_ + bytes_ : nullptr;
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return reinterpret_cast<T*>(begin);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  int64_t bytes_ = 0;
};

// take(value of the element type, workspace) takes what a launcher needs.
template <class Take>
int64_t workspace_size(DType dtype, Take take) {
  Workspace memory(nullptr);
  fd::with_type(dtype, [&](auto element) {
    take(element, memory);
    return cudaSuccess;
  });
  return memory.bytes();
}

}  // namespace fastdl::cuda
