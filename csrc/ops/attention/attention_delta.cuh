// What backward needs of each query row, and from it the gradient of the sink. Delta: a warp a row. Sink: a
// block a head, rows in a fixed order. Saves nothing.
#pragma once
#include "ops/attention/attention_gradient.cuh"

namespace fastdl::cuda {

constexpr int kDeltaThreads = 128, kSinkThreads = 256;

// rows: of lse, [B, H, L_q] or [H, total_q].
template <class T>
__global__ void __launch_bounds__(kDeltaThreads)
    attention_delta_kernel(const __grid_constant__ AttentionBackward a, RowValue* values, int64_t rows) {
  const int64_t at = int64_t{blockIdx.x} * (kDeltaThreads / 32) + threadIdx.x / 32;
  if (at < rows) make_row_value<T>(a, values, at);
}

// grad_sink = -sum exp(sink - lse) delta
__global__ void __launch_bounds__(kSinkThreads)
    attention_grad_sink_kernel(const __grid_constant__ AttentionBackward a, const RowValue* values) {
  const AttentionCall& c = a.c;
  const int64_t h = blockIdx.x;
  double sum = 0;
  for (int64_t b = 0; b < c.B; ++b) {
    const AttentionSpan span = attention_span(c, b);
    const RowValue* of_head = values + lse_index(c, span, h, 0);
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < span.L_q; i += kSinkThreads)
      sum -= exp(double{c.sink[h]} - of_head[i].near - of_head[i].rest) * of_head[i].delta;
  }
  sum = fd::block_sum<kSinkThreads>(sum);
  if (threadIdx.x == 0) a.grad_sink[h] = static_cast<float>(sum);
}

}  // namespace fastdl::cuda
