// The CUDA launchers of attention: fp32, fp16, bf16; D and D_v up to 256. They enqueue on `stream` and return
// what the launch returned; nothing waits.
#pragma once
#include <driver_types.h>

#include "ops/attention/attention.h"

namespace fastdl::cuda {

// Why the kernels do not serve a call, or null. Rows are counted with 29 bits, blocks with 31.
const char* attention_refusal(const AttentionCall& c);

// Bytes that `workspace` needs; not cleared.
int64_t attention_forward_workspace(const AttentionCall& c);
cudaError_t attention_forward(const AttentionForward& a, void* workspace, cudaStream_t stream);

// What attention_forward does where c.short_keys or c.decode says so.
cudaError_t attention_short(const AttentionForward& a, cudaStream_t stream);
int64_t attention_decode_workspace(const AttentionCall& c);
cudaError_t attention_decode(const AttentionForward& a, void* workspace, cudaStream_t stream);

// What attention_forward does where c.hopper says so, on compute capability 9.0.
const char* attention_hopper_refusal(const AttentionCall& c);
cudaError_t attention_hopper(const AttentionForward& a, cudaStream_t stream);

// The rows of q, k or v as a tensor map describes them.
struct HopperRows {
  const void* first;
  AttentionStrides strides;
  int64_t width, count, heads, sequences;
};
inline HopperRows attention_hopper_q(const AttentionCall& c) {
  return {c.q, c.q_strides, c.D, c.L_q, c.H, c.B};
}
inline HopperRows attention_hopper_k(const AttentionCall& c) {
  return {c.k, c.k_strides, c.D, c.L_k, c.H_kv, c.B};
}
inline HopperRows attention_hopper_v(const AttentionCall& c) {
  return {c.v, c.v_strides, c.D_v, c.L_k, c.H_kv, c.B};
}
// Whether it can: 16-byte boundaries. Contiguous rows are always read.
bool attention_hopper_reads(const HopperRows& rows);

int64_t attention_backward_workspace(const AttentionCall& c);
cudaError_t attention_backward(const AttentionBackward& a, void* workspace, cudaStream_t stream);

// What attention_backward does for q, k and v where c.short_keys says so; what it needs of each query's row
// stays in `values`, its workspace.
cudaError_t attention_grad_short(const AttentionBackward& a, void* values, cudaStream_t stream);

}  // namespace fastdl::cuda
