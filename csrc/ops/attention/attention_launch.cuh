// What the launchers of attention share: which kernels serve a call, how many blocks, how many stages.
// Host code.
#pragma once
#include "ops/attention/attention_cuda.h"
#include "ops/attention/attention_head.cuh"

namespace fastdl::cuda {

constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;
// Of a head, that one block holds.
constexpr int kMostKeys = 128;

inline int64_t blocks_of(int64_t rows, int64_t a_block) { return (rows + a_block - 1) / a_block; }

template <int kD>
struct HeadSize {
  static constexpr int value = kD;
};

// f(an element of the dtype, the smallest HeadSize that holds D and D_v).
template <class F>
cudaError_t with_kernel(const AttentionCall& c, F f) {
  return fd::with_type(c.dtype, [&](auto element) {
    if constexpr (sizeof(element) == 8) {
      return cudaErrorNotSupported;
    } else {
      const int64_t most = c.D > c.D_v ? c.D : c.D_v;
      if (most <= 64) return f(element, HeadSize<64>());
      if (most <= 128) return f(element, HeadSize<128>());
      return f(element, HeadSize<256>());
    }
  });
}

// Two where they fit.
inline int stages_of(int bytes_of_two) { return bytes_of_two <= fd::largest_shared_bytes() ? 2 : 1; }

}  // namespace fastdl::cuda
