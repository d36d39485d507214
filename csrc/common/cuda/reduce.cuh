// Sums over a warp and over a block, always in the same order.
#pragma once
#include "common/cuda/device.cuh"

namespace fd {

// Every lane gets the sum of all 32.
template <class T>
FD_DEVICE T warp_sum(T v) {
#pragma unroll
  for (int distance = 16; distance; distance >>= 1) v += __shfl_xor_sync(0xffffffffu, v, distance);
  return v;
}

// Thread 0 gets the sum; every thread of the block must call. kThreads is the block's size, a multiple of 32.
template <int kThreads, class T>
FD_DEVICE T block_sum(T v) {
  FD_SHARED(T, partial, [kThreads / 32]);
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int i = 1; i < kThreads / 32; ++i) v += partial[i];
  return v;
}

}  // namespace fd
