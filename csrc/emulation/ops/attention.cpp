// The CUDA kernels of attention as host code, one entry per launcher.
#include "emulation/control.h"
#include "ops/attention/attention_backward_cuda.cu"
#include "ops/attention/attention_cuda.cu"
#include "ops/attention/attention_decode_cuda.cu"
#include "ops/attention/attention_grad_short_cuda.cu"
#include "ops/attention/attention_hopper_cuda.cu"
#include "ops/attention/attention_short_cuda.cu"

using namespace fastdl;

EMULATION_SIZE_OF(AttentionStrides)
EMULATION_SIZE_OF(AttentionCall)
EMULATION_SIZE_OF(AttentionForward)
EMULATION_SIZE_OF(AttentionBackward)

extern "C" {

const char* emulated_attention_refusal(const AttentionCall* p) { return cuda::attention_refusal(*p); }
int64_t emulated_attention_forward_workspace(const AttentionCall* p) {
  return cuda::attention_forward_workspace(*p);
}
int emulated_attention_forward(const AttentionForward* p, void* workspace) {
  return cuda::attention_forward(*p, workspace, nullptr);
}
bool emulated_attention_hopper_reads(const void* first, const AttentionStrides* strides, int64_t width,
                                     int64_t count, int64_t heads, int64_t sequences) {
  return cuda::attention_hopper_reads({first, *strides, width, count, heads, sequences});
}
int64_t emulated_attention_backward_workspace(const AttentionCall* p) {
  return cuda::attention_backward_workspace(*p);
}
int emulated_attention_backward(const AttentionBackward* p, void* workspace) {
  return cuda::attention_backward(*p, workspace, nullptr);
}

}  // extern "C"
