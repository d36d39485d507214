// The CUDA kernels of linear as host code, one entry per launcher.
#include "emulation/control.h"
#include "ops/linear/linear_cuda.cu"

using namespace fastdl;

EMULATION_SIZE_OF(Dropout)
EMULATION_SIZE_OF(LinearForward)
EMULATION_SIZE_OF(LinearActivation)
EMULATION_SIZE_OF(LinearActivationBackward)

extern "C" {

int emulated_linear_activation_forward(const LinearActivation* p, const int64_t* seed) {
  return cuda::linear_activation_forward(*p, seed, nullptr);
}
int64_t emulated_linear_activation_backward_workspace(const LinearActivationBackward* p) {
  return cuda::linear_activation_backward_workspace(*p);
}
int emulated_linear_activation_backward(const LinearActivationBackward* p, const int64_t* seed,
                                        void* workspace) {
  return cuda::linear_activation_backward(*p, seed, workspace, nullptr);
}

}  // extern "C"
