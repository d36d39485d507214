// The CUDA kernels of rnn as host code, one entry per launcher.
#include "emulation/control.h"
#include "ops/rnn/rnn_persistent_cuda.cu"
#include "ops/rnn/rnn_steps_cuda.cu"

using namespace fastdl;

EMULATION_SIZE_OF(RnnWeights)
EMULATION_SIZE_OF(RnnStructure)
EMULATION_SIZE_OF(RnnRows)
EMULATION_SIZE_OF(RnnSequence)
EMULATION_SIZE_OF(RnnForward)
EMULATION_SIZE_OF(RnnBackward)

extern "C" {

int64_t emulated_rnn_steps_forward_workspace(const RnnForward* p) {
  return cuda::rnn_steps_forward_workspace(*p);
}
int emulated_rnn_steps_forward(const RnnForward* p, void* workspace) {
  return cuda::rnn_steps_forward(*p, workspace, nullptr);
}
int64_t emulated_rnn_steps_backward_workspace(const RnnBackward* p) {
  return cuda::rnn_steps_backward_workspace(*p);
}
int emulated_rnn_steps_backward(const RnnBackward* p, void* workspace) {
  return cuda::rnn_steps_backward(*p, workspace, nullptr);
}
const char* emulated_rnn_persistent_forward_refusal(const RnnForward* p) {
  return cuda::rnn_persistent_forward_refusal(*p);
}
int64_t emulated_rnn_persistent_forward_workspace(const RnnForward* p) {
  return cuda::rnn_persistent_forward_workspace(*p);
}
int emulated_rnn_persistent_forward(const RnnForward* p, void* workspace) {
  return cuda::rnn_persistent_forward(*p, workspace, nullptr);
}
const char* emulated_rnn_persistent_backward_refusal(const RnnBackward* p) {
  return cuda::rnn_persistent_backward_refusal(*p);
}
int64_t emulated_rnn_persistent_backward_workspace(const RnnBackward* p) {
  return cuda::rnn_persistent_backward_workspace(*p);
}
int emulated_rnn_persistent_backward(const RnnBackward* p, void* workspace) {
  return cuda::rnn_persistent_backward(*p, workspace, nullptr);
}

const char* emulated_rnn_grid_forward_refusal(const RnnForward* p) {
  return cuda::rnn_grid_forward_refusal(*p);
}
int64_t emulated_rnn_grid_forward_workspace(const RnnForward* p) {
  return cuda::rnn_grid_forward_workspace(*p);
}
int emulated_rnn_grid_forward(const RnnForward* p, void* workspace) {
  return cuda::rnn_grid_forward(*p, workspace, nullptr);
}
const char* emulated_rnn_grid_backward_refusal(const RnnBackward* p) {
  return cuda::rnn_grid_backward_refusal(*p);
}
int64_t emulated_rnn_grid_backward_workspace(const RnnBackward* p) {
  return cuda::rnn_grid_backward_workspace(*p);
}
int emulated_rnn_grid_backward(const RnnBackward* p, void* workspace) {
  return cuda::rnn_grid_backward(*p, workspace, nullptr);
}

}  // extern "C"
