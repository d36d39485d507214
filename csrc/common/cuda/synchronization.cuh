// Named, grid and cluster barriers, and flags in global memory.
#pragma once
#include <cooperative_groups.h>

namespace fd {

FD_DEVICE void grid_sync() { cooperative_groups::this_grid().sync(); }
FD_DEVICE void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <class T>
FD_DEVICE T ld_acquire(const T* p) {
  static_assert(sizeof(T) == 4, "one 32-bit word");
  unsigned bits;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(bits) : "l"(p) : "memory");
  return *reinterpret_cast<T*>(&bits);
}
template <class T>
FD_DEVICE void st_release(T* p, T value) {
  static_assert(sizeof(T) == 4, "one 32-bit word");
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(*reinterpret_cast<unsigned*>(&value))
               : "memory");
}
// What the block wrote before its last barrier is seen by who reads the sum with ld_acquire.
FD_DEVICE void add_release(unsigned* p, unsigned value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}
FD_DEVICE void spin() {}

// Before sm_90 a block is a cluster of its own.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
FD_DEVICE unsigned cluster_rank() { return cooperative_groups::this_cluster().block_rank(); }
FD_DEVICE unsigned cluster_size() { return cooperative_groups::this_cluster().num_blocks(); }
FD_DEVICE void cluster_sync() { cooperative_groups::this_cluster().sync(); }
// The two halves of cluster_sync: what was written before the first is seen after the second.
FD_DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
FD_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
template <class T>
FD_DEVICE T* cluster_map(T* p, unsigned rank) {
  return cooperative_groups::this_cluster().map_shared_rank(p, rank);
}
#else
FD_DEVICE unsigned cluster_rank() { return 0; }
FD_DEVICE unsigned cluster_size() { return 1; }
FD_DEVICE void cluster_sync() { __syncthreads(); }
FD_DEVICE void cluster_arrive() {}
FD_DEVICE void cluster_wait() { __syncthreads(); }
template <class T>
FD_DEVICE T* cluster_map(T* p, unsigned) {
  return p;
}
#endif

}  // namespace fd
