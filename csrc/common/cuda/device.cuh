// What every kernel includes. With FD_EMULATE the CPU emulation, else CUDA.
// Inline PTX lives in this folder, inside thin fd:: functions, and nowhere else: each has a twin in
// csrc/emulation.
#pragma once
#include <cstdint>
#ifdef FD_EMULATE
#include "emulation/cuda.h"
#define FD_DEVICE inline
#define FD_HOST_DEVICE inline
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define FD_DEVICE __device__ __forceinline__
#define FD_HOST_DEVICE __host__ __device__ __forceinline__
#define FD_SHARED(T, name, dims) __shared__ T name dims
#define FD_DYNAMIC_SHARED(T, name)                                    \
  extern __shared__ __align__(128) unsigned char fd_dynamic_shared[]; \
  T* name = reinterpret_cast<T*>(fd_dynamic_shared)
#include "common/cuda/async_copy.cuh"
#include "common/cuda/launch.cuh"
#include "common/cuda/mma.cuh"
#include "common/cuda/registers.cuh"
#include "common/cuda/synchronization.cuh"
#include "common/cuda/tensor_map.cuh"
#include "common/cuda/wgmma.cuh"
#endif
