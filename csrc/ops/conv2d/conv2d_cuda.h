// The CUDA launcher of the family. It enqueues on `stream` and returns what the launch returned; nothing
// waits.
#pragma once
#include <driver_types.h>

#include "ops/conv2d/conv2d.h"

namespace fastdl::cuda {

// A plane, and the channels of a pixel, must be at most 2^30.
cudaError_t conv2d_epilogue(const Conv2dEpilogue& e, cudaStream_t stream);

}  // namespace fastdl::cuda
