// The running softmax of a warp's 16 rows: maximum, sum and output stay in registers, tile after tile of
// keys. A lane holds parts of two rows, as mma.sync deals them. Saves lse in fp64.
#pragma once
#include "ops/attention/attention_scores.cuh"

namespace fastdl::cuda {

// Of the four lanes that hold a row.
FD_DEVICE float quad_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(~0u, v, 1));
  return fmaxf(v, __shfl_xor_sync(~0u, v, 2));
}
FD_DEVICE float quad_sum(float v) {
  v += __shfl_xor_sync(~0u, v, 1);
  return v + __shfl_xor_sync(~0u, v, 2);
}

// The running softmax of a lane's two rows; `total` is the lane's part of the sum.
template <class T, int kD>
struct OnlineSoftmax {
  float highest[2], total[2];
  float output[kD / 8][4] = {};

  // One block of a row begins with its sink.
  template <class Tile>
  FD_DEVICE OnlineSoftmax(const Head& head, const Tile& tile, bool with_sink) {
    for (int half = 0; half < 2; ++half) {
      float sink = kHidden;
      if (with_sink && head.c.sink)
        sink = head.c.sink[head.h + tile.head_offset(tile.row + fragment_row(2 * half))];
      highest[half] = sink;
      total[half] = sink == kHidden || threadIdx.x % 4 ? 0.0f : 1.0f;
    }
  }
  // Scores become powers; what came before is scaled to the new maximum. kOnly: there is no output yet.
  template <bool kOnly = false, int kTiles>
  FD_DEVICE void take(float (&s)[kTiles][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = highest[half];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) most = fmaxf(most, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
      most = quad_max(most);
      const float reference = most == kHidden ? 0.0f : most;
      if (most != highest[half]) {
        const float factor = power<T>(highest[half], reference);
        total[half] *= factor;
        if constexpr (!kOnly)
#pragma unroll
          for (int n = 0; n < kD / 8; ++n) output[n][2 * half] *= factor, output[n][2 * half + 1] *= factor;
        highest[half] = most;
      }
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          s[n][e] = power<T>(s[n][e], reference);
          sum += s[n][e];
        }
      total[half] += sum;
    }
  }
  FD_DEVICE void store(const AttentionForward& a, const Head& head, int row) {
    const AttentionCall& c = a.c;
    float sum[2], factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[half] = quad_sum(total[half]);
      factor[half] = sum[half] == 0 ? 0.0f : 1.0f / (sum[half] * (1.0f - c.dropout_p));
    }
    const int64_t stride = (c.cu_seqlens_q ? c.H : 1) * c.D_v;
    T* to = static_cast<T*>(a.output) + query_row(c, head.span, head.h, 0) * c.D_v;
    store_rows(output, factor, to, stride, row, head.L_q, static_cast<int>(c.D_v));
    if (threadIdx.x % 4 != 0) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = row + fragment_row(2 * half);
      if (i >= head.L_q) continue;
      const double reference = highest[half] == kHidden ? 0.0 : highest[half];
      a.lse[lse_index(c, head.span, head.h, i)] =
          sum[half] == 0 ? kHidden : reference + log(double{sum[half]});
    }
  }
};

}  // namespace fastdl::cuda
