// The softmax of one row over ranges of keys that were computed apart: maximum, sum, output, always combined
// in the order of the keys. A warp a row, a lane the columns lane, lane + 32, .... Saves lse in fp64.
#pragma once
#include "ops/attention/attention_scores.cuh"

namespace fastdl::cuda {

// In memory: highest, total, output[width], with output relative to the maximum.
FD_HOST_DEVICE int result_floats(int width) { return width + 2; }

template <int kD>
struct RowResult {
  float highest = kHidden, total = 0, output[kD / 32] = {};
};

// Of `count` ranges, `stride` floats apart.
template <class T, int kD>
FD_DEVICE RowResult<kD> combine_results(const float* first, int64_t stride, int count, int width) {
  RowResult<kD> all;
  for (int range = 0; range < count; ++range) all.highest = fmaxf(all.highest, first[range * stride]);
  const float reference = all.highest == kHidden ? 0.0f : all.highest;
#pragma unroll 4
  for (int range = 0; range < count; ++range) {
    const float* one = first + range * stride;
    const float factor = power<T>(one[0], reference);
    all.total += one[1] * factor;
#pragma unroll
    for (int k = 0; k < kD / 32; ++k) {
      const int column = threadIdx.x % 32 + 32 * k;
      if (column < width) all.output[k] += one[2 + column] * factor;
    }
  }
  return all;
}

template <int kD>
FD_DEVICE void store_result(const RowResult<kD>& row, float* to, int width) {
  if (threadIdx.x % 32 == 0) to[0] = row.highest, to[1] = row.total;
#pragma unroll
  for (int k = 0; k < kD / 32; ++k) {
    const int column = threadIdx.x % 32 + 32 * k;
    if (column < width) to[2 + column] = row.output[k];
  }
}

// Output and lse of query i of head h.
template <class T, int kD>
FD_DEVICE void finish_row(const AttentionForward& a, const AttentionSpan& span, int64_t h, int i,
                          const RowResult<kD>& row) {
  const AttentionCall& c = a.c;
  const float factor = row.total == 0 ? 0.0f : 1.0f / (row.total * (1.0f - c.dropout_p));
  T* to = static_cast<T*>(a.output) + query_row(c, span, h, i) * c.D_v;
#pragma unroll
  for (int k = 0; k < kD / 32; ++k) {
    const int column = threadIdx.x % 32 + 32 * k;
    if (column < c.D_v) to[column] = fd::from_compute<T>(factor == 0 ? 0.0f : row.output[k] * factor);
  }
  const double reference = row.highest == kHidden ? 0.0 : row.highest;
  if (threadIdx.x % 32 == 0)
    a.lse[lse_index(c, span, h, i)] = row.total == 0 ? kHidden : reference + log(double{row.total});
}

}  // namespace fastdl::cuda
