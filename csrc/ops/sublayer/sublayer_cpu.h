// The CPU kernels of sublayer: the norm is compiled for every instruction set, the rest is those of linear
// and attention.
#pragma once
#include "common/cpu/parallel.h"
#include "ops/sublayer/sublayer.h"

namespace fastdl::cpu {

void residual_norm(const NormForward& args, const ThreadPool& pool);
void attention_sublayer(const AttentionSublayer& args, const ThreadPool& pool);
void feed_forward_sublayer(const FeedForwardSublayer& args, const ThreadPool& pool);

}  // namespace fastdl::cpu
