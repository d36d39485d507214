// The CPU kernel of conv2d that follows somebody else's convolution; those that convolve are declared in
// ops/conv_relu_maxpool/conv_relu_maxpool_cpu.h.
#pragma once
#include "common/cpu/parallel.h"
#include "ops/conv2d/conv2d.h"

namespace fastdl::cpu {

// Every dtype, both memory formats.
void conv2d_epilogue(const Conv2dEpilogue& args, const ThreadPool& pool);

}  // namespace fastdl::cpu
