// Gradients of attention of few keys: a block a head of k (attention_grad_short.cuh). Host code.
#include "ops/attention/attention_grad_short.cuh"
#include "ops/attention/attention_launch.cuh"

namespace fastdl::cuda {
namespace {

template <class T, int kD, int kN>
cudaError_t launch_grad_short(const AttentionBackward& a, RowValue* values, cudaStream_t stream) {
  const fd::LaunchShape shape{dim3(static_cast<unsigned>(a.c.B * a.c.H_kv)), dim3(2 * kN),
                              static_cast<size_t>(grad_short_bytes<T, kD, kN>())};
  return fd::launch(attention_grad_short_kernel<T, kD, kN>, shape, stream, a, values);
}

}  // namespace

cudaError_t attention_grad_short(const AttentionBackward& a, void* values, cudaStream_t stream) {
  const AttentionCall& c = a.c;
  if (c.cu_seqlens_q || c.L_k > kMostKeys) return cudaErrorNotSupported;
  if (c.B * c.H_kv == 0) return cudaSuccess;
  return with_kernel(c, [&](auto element, auto size) {
    using T = decltype(element);
    constexpr int kD = decltype(size)::value;
    // The gradients of k and v of a larger head do not fit the registers.
    if constexpr (kD > 64)
      return cudaErrorNotSupported;
    else if (c.L_k <= 64)
      return launch_grad_short<T, kD, 64>(a, static_cast<RowValue*>(values), stream);
    else
      return launch_grad_short<T, kD, kMostKeys>(a, static_cast<RowValue*>(values), stream);
  });
}

}  // namespace fastdl::cuda
