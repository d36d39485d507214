// The CUDA launchers of the family. They enqueue on `stream` and return what the launch returned; nothing
// waits.
#pragma once
#include <driver_types.h>

#include "ops/conv_relu_maxpool/conv_relu_maxpool.h"

namespace fastdl::cuda {

// Of fp32 products: by FMA, or rounded to TF32 on tensor cores. fp64 uses FMA, half types tensor cores,
// always.
enum class Precision { kExact, kTf32 };

// relu(max_pool2d(conv) + bias) and the record, for any window. A sample must have less than 2^30 elements.
cudaError_t bias_relu_maxpool_forward(const BiasReluMaxpoolForward& p, cudaStream_t stream);

// grad_conv and, if wanted, grad_bias, which needs a workspace of bias_relu_maxpool_backward_workspace bytes.
int64_t bias_relu_maxpool_backward_workspace(const BiasReluMaxpoolBackward& p);
cudaError_t bias_relu_maxpool_backward(const BiasReluMaxpoolBackward& p, void* workspace,
                                       cudaStream_t stream);

// The implicit GEMM. nullptr if it can serve the call, else why not.
const char* implicit_gemm_refusal(const ConvReluMaxpoolForward& p);
int64_t implicit_gemm_workspace(const ConvReluMaxpoolForward& p);
cudaError_t implicit_gemm_forward(const ConvReluMaxpoolForward& p, Precision precision, void* workspace,
                                  cudaStream_t stream);

}  // namespace fastdl::cuda
