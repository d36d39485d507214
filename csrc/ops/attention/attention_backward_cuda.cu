// Gradients of q, k, v, bias and sink: which kernels, in which order, how many blocks (attention_delta.cuh,
// attention_grad_*.cuh). Each gradient has its own kernel and one owner an element: no atomics, the same bits
// in every run. Host code.
#include "ops/attention/attention_delta.cuh"
#include "ops/attention/attention_grad_bias.cuh"
#include "ops/attention/attention_grad_kv.cuh"
#include "ops/attention/attention_grad_q.cuh"
#include "ops/attention/attention_launch.cuh"

namespace fastdl::cuda {
namespace {

int64_t lse_rows(const AttentionCall& c) { return (c.cu_seqlens_q ? 1 : c.B) * c.H * c.L_q; }

// One call, one head size.
template <class T, int kD>
struct Backward {
  const AttentionBackward& a;
  RowValue* values;
  cudaStream_t stream;
  const AttentionCall& c = a.c;

  fd::LaunchShape shape(int64_t blocks, int stages) const {
    return {dim3(static_cast<unsigned>(blocks)), dim3(32 * kBackwardWarps<T, kD>),
            static_cast<size_t>(backward_bytes<T, kD>(stages))};
  }
  cudaError_t delta() const {
    const int64_t rows = lse_rows(c), blocks = blocks_of(rows, kDeltaThreads / 32);
    if (rows == 0) return cudaSuccess;
    return fd::launch(attention_delta_kernel<T>, {dim3(static_cast<unsigned>(blocks)), dim3(kDeltaThreads)},
                      stream, a, values, rows);
  }
  cudaError_t grad_q() const {
    const int64_t blocks = blocks_of(c.max_q, kBackwardM<T, kD>), all = c.B * c.H * blocks;
    const int stages = stages_of(backward_bytes<T, kD>(2));
    if (all <= 0) return cudaSuccess;
    return fd::launch(attention_grad_q_kernel<T, kD>, shape(all, stages), stream, a, values,
                      static_cast<int>(blocks), stages);
  }
  template <bool kOfK, bool kOfV>
  cudaError_t grad_kv() const {
    const int64_t blocks = blocks_of(c.max_k, kBackwardM<T, kD>), all = c.B * c.H_kv * blocks;
    const int stages = stages_of(backward_bytes<T, kD>(2));
    if (all <= 0) return cudaSuccess;
    return fd::launch(attention_grad_kv_kernel<T, kD, kOfK, kOfV>, shape(all, stages), stream, a, values,
                      static_cast<int>(blocks), stages);
  }
  cudaError_t grad_qkv() const {
    cudaError_t error = delta();
    if (error == cudaSuccess) error = grad_q();
    if constexpr (kGradKvAtOnce<T, kD>) {
      if (error == cudaSuccess) error = grad_kv<true, true>();
    } else {
      if (error == cudaSuccess) error = grad_kv<true, false>();
      if (error == cudaSuccess) error = grad_kv<false, true>();
    }
    return error;
  }
  cudaError_t grad_bias() const {
    const int64_t* size = a.bias_sizes;
    const int64_t rows = blocks_of(size[2], kBackwardM<T, kD>), columns = blocks_of(size[3], kBackwardN<T>);
    const int64_t all = size[0] * size[1] * rows * columns;
    if (!a.grad_bias || all == 0) return cudaSuccess;
    if (all > kMostBlocks) return cudaErrorNotSupported;
    return fd::launch(attention_grad_bias_kernel<T, kD>, shape(all, 1), stream, a, values,
                      static_cast<int>(rows), static_cast<int>(columns));
  }
  cudaError_t grad_sink() const {
    if (!a.grad_sink || c.H == 0) return cudaSuccess;
    return fd::launch(attention_grad_sink_kernel, {dim3(static_cast<unsigned>(c.H)), dim3(kSinkThreads)},
                      stream, a, values);
  }
};

}  // namespace

int64_t attention_backward_workspace(const AttentionCall& c) {
  return lse_rows(c) * static_cast<int64_t>(sizeof(RowValue));
}

cudaError_t attention_backward(const AttentionBackward& a, void* workspace, cudaStream_t stream) {
  if (attention_refusal(a.c)) return cudaErrorNotSupported;
  return with_kernel(a.c, [&](auto element, auto size) {
    using T = decltype(element);
    constexpr int kD = decltype(size)::value;
    const Backward<T, kD> run{a, static_cast<RowValue*>(workspace), stream};
    cudaError_t error = a.c.short_keys ? attention_grad_short(a, workspace, stream) : run.grad_qkv();
    if (error == cudaSuccess) error = run.grad_bias();
    if (error == cudaSuccess) error = run.grad_sink();
    return error;
  });
}

}  // namespace fastdl::cuda
