// Functions that CPU code and CUDA kernels share.
#pragma once

#if defined(__CUDACC__)
#define FASTDL_HOST_DEVICE __host__ __device__
#else
#define FASTDL_HOST_DEVICE
#endif
