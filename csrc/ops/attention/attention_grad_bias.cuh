// The gradient of the bias: that of the scores, summed over what the bias is broadcast over, in a fixed
// order. A block makes one tile of the bias (one row or column of it where it has only one) and passes every
// sequence, head and tile that shares it. Saves nothing.
#pragma once
#include "ops/attention/attention_gradient.cuh"

namespace fastdl::cuda {

// Which part of a broadcast axis a tile of the bias stands for: all of it, or its own.
FD_DEVICE TileRange shared_range(int64_t size, int64_t own, int64_t step, int64_t all) {
  if (size == 1) return {0, static_cast<int>(all)};
  return {static_cast<int>(own), static_cast<int>(own + step)};
}

// Sums over a block's rows, for each column; every lane gets those of its columns as its upper row.
template <int kWarps, int kTiles>
FD_DEVICE void sum_rows(float (&total)[kTiles][4]) {
  FD_SHARED(float, partial, [kWarps][8 * kTiles]);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      float sum = total[n][k] + total[n][2 + k];
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2) sum += __shfl_xor_sync(~0u, sum, distance);
      if (lane < 4) partial[warp][fragment_column(n, k)] = sum;
    }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      float sum = 0;
      for (int w = 0; w < kWarps; ++w) sum += partial[w][fragment_column(n, k)];
      total[n][k] = sum;
    }
}

// Sums over a tile's columns, for each row, as its first column.
template <int kTiles>
FD_DEVICE void sum_columns(float (&total)[kTiles][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = 0;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) sum += total[n][2 * half] + total[n][2 * half + 1];
    sum += __shfl_xor_sync(~0u, sum, 1);
    total[0][2 * half] = sum + __shfl_xor_sync(~0u, sum, 2);
  }
}

// rows, columns: tiles of the bias.
template <class T, int kD>
__global__ void __launch_bounds__(32 * kBackwardWarps<T, kD>, 2)
    attention_grad_bias_kernel(const __grid_constant__ AttentionBackward a, const RowValue* all_values,
                               int rows, int columns) {
  constexpr int kM = kBackwardM<T, kD>, kN = kBackwardN<T>, kThreads = 2 * kM, kRow = kRowBytes<T, kD>;
  check_architecture<T, kD>();
  FD_DYNAMIC_SHARED(char, shared);
  const AttentionCall& c = a.c;
  const int64_t* size = a.bias_sizes;
  const int64_t plane = blockIdx.x / columns / rows;
  const int row = blockIdx.x / columns % rows * kM, column = blockIdx.x % columns * kN;
  const TileRange bs = shared_range(size[0], plane / size[1], 1, c.B);
  const TileRange hs = shared_range(size[1], plane % size[1], 1, c.H);
  const TileRange is = shared_range(size[2], row, kM, c.L_q), js = shared_range(size[3], column, kN, c.L_k);
  const int warp_row = threadIdx.x / 32 * 16;
  char *q_tile = shared, *grad_output_tile = q_tile + kM * kRow, *k_tile = grad_output_tile + kM * kRow,
       *v_tile = k_tile + kN * kRow;

  float total[kN / 8][4] = {};
  for (int b = bs.first; b < bs.end; ++b)
    for (int h = hs.first; h < hs.end; ++h) {
      const Head head(c, b, h);
      const Rows<T> q = head.q<T>(), k = head.k<T>(), v = head.v<T>();
      const Rows<T> grad_output = rows_of<T>(a.grad_output, a.grad_output_strides, b, h, 0, head.L_q, c.D_v);
      const RowValue* values = all_values + lse_index(c, head.span, h, 0);
      for (int i = is.first; i < is.end; i += kM) {
        const TileRange keys = head.keys<kN>(i, kM);
        for (int j = max(js.first, keys.first); j < min(js.end, keys.end); j += kN) {
          __syncthreads();
          load_rows<kM, kThreads, kD>(q, i, q_tile);
          load_rows<kM, kThreads, kD>(grad_output, i, grad_output_tile);
          load_rows<kN, kThreads, kD>(k, j, k_tile);
          load_rows<kN, kThreads, kD>(v, j, v_tile);
          fd::cp_async_commit();
          fd::cp_async_wait<0>();
          __syncthreads();
          float s[kN / 8][4], grad[kN / 8][4];
          const ScoreTile<false, kN / 8> place{i + warp_row, j};
          scores_and_gradients<T, kD, true>(head, place, values, q_tile, k_tile, grad_output_tile, v_tile,
                                            warp_row, s, grad);
          place.for_each([&](int n, int e, int, int) { total[n][e] += grad[n][e]; });
        }
      }
    }
  if (size[3] == 1) sum_columns(total);
  if (size[2] == 1) sum_rows<kBackwardWarps<T, kD>>(total);
  const ScoreTile<false, kN / 8> place{row + warp_row, column};
  place.for_each([&](int n, int e, int i, int j) {
    if (i < size[2] && j < size[3]) a.grad_bias[(plane * size[2] + i) * size[3] + j] = total[n][e];
  });
}

}  // namespace fastdl::cuda
