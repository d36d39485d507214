// The CUDA kernels of conv_relu_maxpool as host code, one entry per launcher.
#include "emulation/control.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_cuda.cu"
#include "ops/conv_relu_maxpool/implicit_gemm_cuda.cu"

using namespace fastdl;

EMULATION_SIZE_OF(ConvGeometry)
EMULATION_SIZE_OF(PoolGeometry)
EMULATION_SIZE_OF(ConvReluMaxpoolForward)
EMULATION_SIZE_OF(ConvReluMaxpoolBackward)
EMULATION_SIZE_OF(BiasReluMaxpoolForward)
EMULATION_SIZE_OF(BiasReluMaxpoolBackward)

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
const char* emulated_implicit_gemm_refusal(const ConvReluMaxpoolForward* p) {
  return cuda::implicit_gemm_refusal(*p);
}
int64_t emulated_implicit_gemm_workspace(const ConvReluMaxpoolForward* p) {
  return cuda::implicit_gemm_workspace(*p);
}
int emulated_implicit_gemm_forward(const ConvReluMaxpoolForward* p, int tf32, void* workspace) {
  return cuda::implicit_gemm_forward(*p, tf32 ? cuda::Precision::kTf32 : cuda::Precision::kExact, workspace,
                                     nullptr);
}

}  // extern "C"
