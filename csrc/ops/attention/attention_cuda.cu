// softmax(scores) v: which kernel, how many blocks (attention_forward.cuh). Host code.
#include "ops/attention/attention_forward.cuh"
#include "ops/attention/attention_launch.cuh"

namespace fastdl::cuda {

const char* attention_refusal(const AttentionCall& c) {
  if (c.dtype == DType::kFloat64) return "no kernel for float64";
  if (c.D > 256 || c.D_v > 256) return "a head is larger than 256";
  if (c.L_q >= kOpen || c.L_k >= kOpen) return "2^29 rows or more";
  if (c.decode && c.H / c.H_kv * c.L_q >= kOpen) return "2^29 rows or more of a head of k";
  const int64_t heads = c.B * c.H, tiles = blocks_of(c.L_q > c.L_k ? c.L_q : c.L_k, 4);
  return tiles > 0 && heads > kMostBlocks / tiles ? "more than 2^31 blocks" : nullptr;
}

int64_t attention_forward_workspace(const AttentionCall& c) {
  return c.decode ? attention_decode_workspace(c) : 0;
}

cudaError_t attention_forward(const AttentionForward& a, void* workspace, cudaStream_t stream) {
  const AttentionCall& c = a.c;
  if (c.decode) return attention_decode(a, workspace, stream);
  if (c.short_keys) return attention_short(a, stream);
  if (c.hopper) return attention_hopper(a, stream);
  if (attention_refusal(c)) return cudaErrorNotSupported;
  const int64_t blocks = blocks_of(c.max_q, kForwardM);
  if (c.B * c.H * blocks <= 0) return cudaSuccess;
  return with_kernel(c, [&](auto element, auto size) {
    using T = decltype(element);
    constexpr int kD = decltype(size)::value;
    const int stages = stages_of(forward_bytes<T, kD>(2));
    const fd::LaunchShape shape{dim3(static_cast<unsigned>(c.B * c.H * blocks)), dim3(kForwardThreads),
                                static_cast<size_t>(forward_bytes<T, kD>(stages))};
    return fd::launch(attention_forward_kernel<T, kD>, shape, stream, a, static_cast<int>(blocks), stages);
  });
}

}  // namespace fastdl::cuda
