// The CPU kernels of conv2d beside those it shares with conv_relu_maxpool, which are declared in
// ops/conv_relu_maxpool/conv_relu_maxpool_cpu.h.
#pragma once
#include "common/cpu/parallel.h"
#include "ops/conv2d/conv2d.h"

namespace fastdl::cpu {

// One input channel for every output channel: C = groups. x, residual and output contiguous. fp32, fp16,
// bf16; fp32 inside.
void depthwise_conv2d(const Conv2dForward& args, const ThreadPool& pool);

// Follows somebody else's convolution. Every dtype, both memory formats.
void conv2d_epilogue(const Conv2dEpilogue& args, const ThreadPool& pool);

// A normalisation with running statistics as the scale and bias that follow a convolution, fp32.
struct BatchNormScale {
  int64_t C;
  double eps;
  const float *running_mean, *running_var;  // [C]
  const float *weight, *bias, *conv_bias;   // [C] or null; conv_bias: the convolution's own
  float *scale, *shift;                     // [C]
};
void batch_norm_scale(const BatchNormScale& args);

}  // namespace fastdl::cpu
