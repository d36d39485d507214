// The CPU kernels of linear, each compiled for every instruction set and picked once per process.
#pragma once
#include "common/cpu/parallel.h"
#include "ops/linear/linear.h"
#include "ops/linear/linear_product.h"

namespace fastdl::cpu {

// fp32, fp16, bf16; fp32 inside.
void linear_dot_forward(const LinearForward& args, const ThreadPool& pool);

void linear_product(const LinearProduct& args, const ThreadPool& pool);

// Every dtype.
void linear_activation_forward(const LinearActivation& args, const ThreadPool& pool);
void linear_activation_backward(const LinearActivationBackward& args, const ThreadPool& pool);

}  // namespace fastdl::cpu
