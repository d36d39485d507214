// The CUDA launchers of the family. They enqueue on `stream` and return what the launch returned; nothing
// waits. A row outside the table gives NaN.
#pragma once
#include <driver_types.h>

#include "ops/diffusion/diffusion.h"

namespace fastdl::cuda {

cudaError_t diffusion_step(const DiffusionStep& a, cudaStream_t stream);
cudaError_t diffusion_step_backward(const DiffusionStepBackward& a, cudaStream_t stream);
cudaError_t normal_noise(const NormalNoise& a, cudaStream_t stream);

}  // namespace fastdl::cuda
