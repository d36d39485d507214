// The CUDA launchers of the family. They enqueue on `stream` and return what the launch returned; nothing
// waits. `seed` lies on the device and takes the place of the dropout's own; null without dropout.
#pragma once
#include <driver_types.h>

#include "ops/linear/linear.h"

namespace fastdl::cuda {

cudaError_t linear_activation_forward(const LinearActivation& args, const int64_t* seed, cudaStream_t stream);

// grad_pre and, if wanted, grad_bias, which needs a workspace of linear_activation_backward_workspace bytes.
int64_t linear_activation_backward_workspace(const LinearActivationBackward& args);
cudaError_t linear_activation_backward(const LinearActivationBackward& args, const int64_t* seed,
                                       void* workspace, cudaStream_t stream);

}  // namespace fastdl::cuda
