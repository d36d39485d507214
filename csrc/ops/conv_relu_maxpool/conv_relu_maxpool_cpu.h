// The CPU kernels of conv_relu_maxpool, each compiled for every instruction set and picked once per process.
#pragma once
#include "common/cpu/parallel.h"
#include "ops/conv2d/conv2d.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool.h"

namespace fastdl::cpu {

// 3x3, stride 1, dilation 1, groups 1; pool 2x2 with stride 2 and no padding, or none. fp32, fp16, bf16; fp32
// inside.
void winograd_forward(const ConvReluMaxpoolForward& args, const ThreadPool& pool);
void winograd_conv2d(const Conv2dForward& args, const ThreadPool& pool);
void winograd_backward(const ConvReluMaxpoolBackward& args, const ThreadPool& pool);

// Any kernel, stride, dilation; groups 1; any pool. fp32, fp16, bf16; fp32 inside.
void direct_forward(const ConvReluMaxpoolForward& args, const ThreadPool& pool);

// Any kernel, stride, dilation; groups 1; any pool. Made for contiguous images. fp32.
void implicit_gemm_forward(const ConvReluMaxpoolForward& args, const ThreadPool& pool);
// The same in bf16, of any memory format, where the CPU has AMX.
bool has_implicit_gemm_tiles();
void implicit_gemm_tiles_forward(const ConvReluMaxpoolForward& args, const ThreadPool& pool);
// x, residual and output contiguous.
void implicit_gemm_conv2d(const Conv2dForward& args, const ThreadPool& pool);

// grad_weight and grad_bias only (grad_input is left alone): made for few input channels. fp32, fp16, bf16.
void direct_backward(const ConvReluMaxpoolBackward& args, const ThreadPool& pool);

// Every dtype, every pool, both memory formats.
void bias_relu_maxpool_forward(const BiasReluMaxpoolForward& args, const ThreadPool& pool);
void bias_relu_maxpool_backward(const BiasReluMaxpoolBackward& args, const ThreadPool& pool);

}  // namespace fastdl::cpu
