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

// The whole sequence in one launch, by clusters; before sm_90 by single blocks. A refusal: nullptr if it can
// serve the call on the current device, else why not.
const char* rnn_persistent_forward_refusal(const RnnForward& p);
int64_t rnn_persistent_forward_workspace(const RnnForward& p);
cudaError_t rnn_persistent_forward(const RnnForward& p, void* workspace, cudaStream_t stream);
const char* rnn_persistent_backward_refusal(const RnnBackward& p);
int64_t rnn_persistent_backward_workspace(const RnnBackward& p);
cudaError_t rnn_persistent_backward(const RnnBackward& p, void* workspace, cudaStream_t stream);

// The whole sequence in a launch or two, by a cooperative grid.
const char* rnn_grid_forward_refusal(const RnnForward& p);
int64_t rnn_grid_forward_workspace(const RnnForward& p);
cudaError_t rnn_grid_forward(const RnnForward& p, void* workspace, cudaStream_t stream);
const char* rnn_grid_backward_refusal(const RnnBackward& p);
int64_t rnn_grid_backward_workspace(const RnnBackward& p);
cudaError_t rnn_grid_backward(const RnnBackward& p, void* workspace, cudaStream_t stream);

}  // namespace fastdl::cuda
