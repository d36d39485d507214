// CUDA on the CPU: the names a kernel may use. What is not here does not compile, on purpose.
// Memory that CUDA leaves undefined is filled with 0xFF (NaN). Under ThreadSanitizer only what CUDA defines
// as ordering orders memory: barriers, __syncwarp, __threadfence, mbarriers; not shuffles, votes, ldmatrix or
// mma.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <driver_types.h>
#include <vector_types.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

#include "emulation/scheduler.h"
#include "emulation/synchronization.h"
#include "emulation/warp.h"
// These need what is above.
#include "emulation/async_copy.h"
#include "emulation/registers.h"
#include "emulation/tensor_core.h"
#include "emulation/tensor_map.h"
#include "emulation/warpgroup.h"

#define threadIdx (emu::self->id)
#define blockIdx (emu::self->block->id)
#define blockDim (emu::machine.block)
#define gridDim (emu::machine.grid)

template <class T>
T __ldg(const T* p) {
  return *p;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t(a) * b >> 32; }
using std::max;
using std::min;

namespace fd {

// The twin of common/cuda/launch.cuh.
struct LaunchShape {
  dim3 grid, block;
  size_t shared_bytes = 0;
  bool cooperative = false;
  unsigned cluster = 1;
};

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t,
                   Arguments... arguments) {
  emu::launch(shape.grid, shape.block, shape.shared_bytes, shape.cooperative, shape.cluster,
              [=] { kernel(arguments...); });
  return emu::machine.error.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}
inline cudaError_t set_zero(void* p, size_t bytes, cudaStream_t) {
  memset(p, 0, bytes);
  return cudaSuccess;
}
// A machine of each kind is a device of its own: what is remembered of one must not be used for another.
inline int current_device() {
  const emu::Options& o = emu::options;
  return static_cast<int>((o.multiprocessors * 256 + o.largest_shared / 1024) * 32 + o.largest_cluster);
}
inline int largest_shared_bytes() { return static_cast<int>(emu::options.largest_shared); }
inline int multiprocessors() { return static_cast<int>(emu::options.multiprocessors); }
template <class... Parameters>
bool has_body(void (*)(Parameters...)) {
  return true;
}
template <class... Parameters>
unsigned portable_cluster(void (*)(Parameters...)) {
  return min(8u, emu::options.largest_cluster);
}
// Of a cooperative grid a block a multiprocessor; else as many as anyone asks for, of what could be launched.
template <class... Parameters>
int resident_clusters(void (*)(Parameters...), const LaunchShape& shape) {
  return emu::invalid_launch(shape.grid, shape.block, shape.shared_bytes, shape.cluster) ||
                 shape.cluster > emu::options.largest_cluster
             ? 0
         : shape.cooperative ? multiprocessors()
                             : 1 << 20;
}

}  // namespace fd
