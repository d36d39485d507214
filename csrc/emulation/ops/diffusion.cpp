// The CUDA kernels of diffusion as host code, one entry per launcher.
#include "emulation/control.h"
#include "ops/diffusion/diffusion_cuda.cu"

using namespace fastdl;

extern "C" {

int emulated_diffusion_step(const DiffusionStep* a) { return cuda::diffusion_step(*a, nullptr); }
int emulated_diffusion_step_backward(const DiffusionStepBackward* a) {
  return cuda::diffusion_step_backward(*a, nullptr);
}
int emulated_normal_noise(const NormalNoise* a) { return cuda::normal_noise(*a, nullptr); }

}  // extern "C"
