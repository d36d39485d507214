// The CUDA kernels of conv2d as host code, one entry per launcher.
#include "emulation/control.h"
#include "ops/conv2d/conv2d_cuda.cu"

using namespace fastdl;

EMULATION_SIZE_OF(Conv2dForward)
EMULATION_SIZE_OF(Conv2dEpilogue)

extern "C" {

int emulated_conv2d_epilogue(const Conv2dEpilogue* p) { return cuda::conv2d_epilogue(*p, nullptr); }

}  // extern "C"
