// The CUDA kernels of conv_relu_maxpool as host code, one entry per launcher.
#include "emulation/control.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_cuda.cu"

using namespace fastdl;

extern "C" {

int emulated_bias_relu_maxpool_forward(const BiasReluMaxpoolForward* p) {
  return cuda::bias_relu_maxpool_forward(*p, nullptr);
}
int64_t emulated_bias_relu_maxpool_backward_workspace(const BiasReluMaxpoolBackward* p) {
  return cuda::bias_relu_maxpool_backward_workspace(*p);
}
int emulated_bias_relu_maxpool_backward(const BiasReluMaxpoolBackward* p, void* workspace) {
  return cuda::bias_relu_maxpool_backward(*p, workspace, nullptr);
}

}  // extern "C"
