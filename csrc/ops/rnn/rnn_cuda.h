// The CUDA launchers of the family. They enqueue on `stream` and return what the launch returned; nothing
// waits. x must be projected. The workspace needs no initial value; null where its size is 0.
#pragma once
#include <driver_types.h>

#include "ops/rnn/rnn.h"

namespace fastdl::cuda {

// A launch or more for every step; serves every structure.
int64_t rnn_steps_forward_workspace(const RnnForward& p);
cudaError_t rnn_steps_forward(const RnnForward& p, void* workspace, cudaStream_t stream);
int64_t rnn_steps_backward_workspace(const RnnBackward& p);
cudaError_t rnn_steps_backward(const RnnBackward& p, void* workspace, cudaStream_t stream);

}  // namespace fastdl::cuda
