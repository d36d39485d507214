// Launches a pass after somebody else's convolution: a thread an item, items numbered with 31 bits. Saves
// nothing.
#pragma once
#include <algorithm>

#include "common/cuda/divide.cuh"

namespace fastdl::cuda {

constexpr int kPassThreads = 256;

// Elements of 16 bytes.
template <class T>
constexpr int kVector = 16 / sizeof(T);

// Calls kernel(params) for `samples` samples of inner * middle * outer items, in as many launches as 31 bits
// ask for.
template <class Params, class Advance>
cudaError_t launch_pass(void (*kernel)(Params), Params p, int64_t samples, int64_t inner, int64_t middle,
                        int64_t outer, Advance advance, cudaStream_t stream) {
  p.by_inner = fd::Divider(inner), p.by_middle = fd::Divider(middle), p.by_outer = fd::Divider(outer);
  int64_t each = inner * middle * outer;
  if (each > fd::kMaxItems) return cudaErrorInvalidValue;
  for (int64_t first = 0; first < samples;) {
    int64_t count = std::min(samples - first, fd::kMaxItems / each);
    p.items = count * each;
    unsigned blocks = (p.items + kPassThreads - 1) / kPassThreads;
    if (cudaError_t error = fd::launch(kernel, {dim3(blocks), dim3(kPassThreads)}, stream, p)) return error;
    advance(p, count);
    first += count;
  }
  return cudaSuccess;
}

}  // namespace fastdl::cuda
