// A cluster of blocks that has one sample: its threads, and what all of them agree on.
#pragma once
#include "ops/diffusion/elements.cuh"

namespace fastdl::cuda {

constexpr int kSampleThreads = 512, kSampleWarps = kSampleThreads / 32;

FD_DEVICE Share share_of_cluster() {
  return {int64_t{blockIdx.x} * kSampleThreads + threadIdx.x, int64_t{gridDim.x} * kSampleThreads};
}

// Every thread gets each v[k] combined over the cluster, always in the same order. All must call.
template <int kCount, class V, class Combine>
FD_DEVICE void combine_in_cluster(V (&v)[kCount], const Combine& combine) {
  FD_SHARED(V, of_warp, [kCount][kSampleWarps]);
  FD_SHARED(V, of_block, [kCount]);
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
#pragma unroll
    for (int distance = 16; distance; distance >>= 1)
      v[k] = combine(v[k], __shfl_xor_sync(0xffffffffu, v[k], distance));
    if (threadIdx.x % 32 == 0) of_warp[k][threadIdx.x / 32] = v[k];
  }
  __syncthreads();
  if (threadIdx.x < kCount) {
    V total = of_warp[threadIdx.x][0];
    for (int i = 1; i < kSampleWarps; ++i) total = combine(total, of_warp[threadIdx.x][i]);
    of_block[threadIdx.x] = total;
  }
  fd::cluster_sync();
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    v[k] = *fd::cluster_map(&of_block[k], 0);
    for (unsigned rank = 1; rank < fd::cluster_size(); ++rank)
      v[k] = combine(v[k], *fd::cluster_map(&of_block[k], rank));
  }
  // Nobody overwrites what another still reads, nor exits.
  fd::cluster_sync();
}

// The sum over the threads of the block before this one. All must call, and meet before they call again.
FD_DEVICE unsigned sum_before(unsigned v) {
  FD_SHARED(unsigned, of_warp, [kSampleWarps]);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned sum = v;
#pragma unroll
  for (int distance = 1; distance < 32; distance <<= 1) {
    const unsigned below = __shfl_up_sync(0xffffffffu, sum, distance);
    if (lane >= static_cast<unsigned>(distance)) sum += below;
  }
  if (lane == 31) of_warp[warp] = sum;
  __syncthreads();
  for (unsigned i = 0; i < warp; ++i) sum += of_warp[i];
  return sum - v;
}

}  // namespace fastdl::cuda
