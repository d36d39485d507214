// Attention of few keys: how many keys a block holds (attention_short.cuh). Host code.
#include "ops/attention/attention_launch.cuh"
#include "ops/attention/attention_short.cuh"

namespace fastdl::cuda {
namespace {

template <class T, int kD, int kN>
cudaError_t launch_short(const AttentionForward& a, cudaStream_t stream) {
  const int64_t blocks = blocks_of(a.c.L_q, kShortM);
  const fd::LaunchShape shape{dim3(static_cast<unsigned>(a.c.B * a.c.H * blocks)), dim3(kShortThreads),
                              static_cast<size_t>(short_bytes<T, kD, kN>())};
  return fd::launch(attention_short_kernel<T, kD, kN>, shape, stream, a, static_cast<int>(blocks));
}

}  // namespace

cudaError_t attention_short(const AttentionForward& a, cudaStream_t stream) {
  const AttentionCall& c = a.c;
  if (attention_refusal(c) || c.cu_seqlens_q || c.L_k > kMostKeys) return cudaErrorNotSupported;
  if (c.B * c.H * c.L_q == 0) return cudaSuccess;
  return with_kernel(c, [&](auto element, auto size) {
    using T = decltype(element);
    constexpr int kD = decltype(size)::value;
    if constexpr (kD * sizeof(T) > 256)
      return cudaErrorNotSupported;
    else if (c.L_k <= 64)
      return launch_short<T, kD, 64>(a, stream);
    else
      return launch_short<T, kD, kMostKeys>(a, stream);
  });
}

}  // namespace fastdl::cuda
