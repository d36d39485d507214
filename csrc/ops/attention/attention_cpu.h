// The CPU kernels of attention, compiled for every instruction set and picked once per process. fp32, fp16,
// bf16; fp32 inside.
#pragma once
#include "common/cpu/parallel.h"
#include "ops/attention/attention.h"

namespace fastdl::cpu {

void attention_forward(const AttentionForward& args, const ThreadPool& pool);
void attention_backward(const AttentionBackward& args, const ThreadPool& pool);

}  // namespace fastdl::cpu
