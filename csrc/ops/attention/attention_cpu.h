// The CPU kernels of attention, compiled for every instruction set and picked once per process. fp32, fp16,
// bf16; fp32 inside.
#pragma once
#include "common/cpu/parallel.h"
#include "ops/attention/attention.h"

namespace fastdl::cpu {

// Of an output without gaps.
inline AttentionStrides dense_output(const AttentionCall& c) {
  if (c.cu_seqlens_q != nullptr) return {0, c.D_v, c.H * c.D_v, 1};
  return {c.H * c.L_q * c.D_v, c.L_q * c.D_v, c.D_v, 1};
}

// float32 alone, as many heads of k as of q, without dropout, sink or lse.
struct AttentionWeights {
  AttentionForward forward;
  float* weights;  // [B, H, L_q, L_k]; averaged over the heads: [B, L_q, L_k]
  bool averaged;
};

void attention_forward(const AttentionForward& args, const ThreadPool& pool);
void attention_backward(const AttentionBackward& args, const ThreadPool& pool);
void attention_weights(const AttentionWeights& args, const ThreadPool& pool);

}  // namespace fastdl::cpu
