// grad_q, grad_k and grad_v in one launch where all keys of a head fit in shared memory: scores are computed
// once. A block takes one head of k, a warp 16 of its keys, and passes the queries of all its heads of q; the
// gradients of the scores go through shared memory to the warps that multiply them by k. Saves nothing.
#pragma once
#include "ops/attention/attention_gradient.cuh"

namespace fastdl::cuda {

// Queries that a block takes at a time. The gradients of their scores lie by key, in rows of an odd number of
// 16 bytes: eight rows touch all 32 banks once.
constexpr int kGradShortM = 32;
template <class T>
constexpr int kGradientsRow = kGradShortM * static_cast<int>(sizeof(T)) + 16;

template <class T, int kD, int kN>
constexpr int grad_short_bytes() {
  return 2 * (kN + kGradShortM) * kRowBytes<T, kD> + kN * kGradientsRow<T>;
}

// A warp's 16 rows of gradients, rounded to T.
template <class T, int kTiles>
FD_DEVICE void keep_gradients(const float (&grad)[kTiles][4], char* rows) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const fd::Vector<T, 2> pair{
          {fd::from_compute<T>(grad[n][2 * half]), fd::from_compute<T>(grad[n][2 * half + 1])}};
      char* row = rows + fragment_row(2 * half) * kGradientsRow<T>;
      fd::store_vector(reinterpret_cast<T*>(row) + fragment_column(n, 0), pair);
    }
}

// sums += the gradients of queries first .. first + 16 of keys.first .. keys.end, in steps of 16, times these
// keys from `column` on.
template <class T, int kD, int kTiles>
FD_DEVICE void multiply_by_keys(const char* gradients, int first, const char* k_tile, int column,
                                const TileRange& keys, float (&sums)[kTiles][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int j = keys.first; j < keys.end; j += 16) {
    const char* rows = gradients + j * kGradientsRow<T>;
    if constexpr (sizeof(T) == 2) {
      uint32_t left[4];
      fd::ldmatrix_x4(
          left, rows + (lane / 16 * 8 + lane % 8) * kGradientsRow<T> + first * 2 + lane / 8 % 2 * 16, true);
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        uint32_t pair[4];
        fd::ldmatrix_x4(pair, k_tile + swizzled<T, kD>(j + lane % 16, column / 8 + n + lane / 16), true);
        const uint32_t even[2] = {pair[0], pair[1]}, odd[2] = {pair[2], pair[3]};
        fd::mma<T>(sums[n], left, even);
        fd::mma<T>(sums[n + 1], left, odd);
      }
    } else {
#pragma unroll 4
      for (int k = 0; k < 16; ++k) {
        const T* row = reinterpret_cast<const T*>(rows + k * kGradientsRow<T>) + first;
        const float upper = row[fragment_row(0)], lower = row[fragment_row(2)];
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const int at = column + fragment_column(n, 0);
          const auto pair = fd::load_vector<2>(
              reinterpret_cast<const T*>(k_tile + swizzled<T, kD>(j + k, at / 4)) + at % 4);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            sums[n][e] += upper * pair.value[e];
            sums[n][2 + e] += lower * pair.value[e];
          }
        }
      }
    }
  }
}

template <class T, int kD, int kN>
__global__ void __launch_bounds__(2 * kN, 128 / kN)
    attention_grad_short_kernel(const __grid_constant__ AttentionBackward a, RowValue* all_values) {
  constexpr int kM = kGradShortM, kThreads = 2 * kN, kRow = kRowBytes<T, kD>;
  // Of grad_q: two warps share its rows, the others its columns.
  constexpr int kColumns = kD / (kThreads / 64);
  fd::needs_sm80();
  FD_DYNAMIC_SHARED(char, shared);
  const AttentionCall& c = a.c;
  const int64_t h_kv = blockIdx.x % c.H_kv, heads = c.H / c.H_kv;
  Head head(c, blockIdx.x / c.H_kv, h_kv * heads);
  char *k_tile = shared, *v_tile = k_tile + kN * kRow, *q_tile = v_tile + kN * kRow,
       *grad_output_tile = q_tile + kM * kRow, *gradients = grad_output_tile + kM * kRow;
  const int warp = threadIdx.x / 32, j = warp * 16, row = warp % 2 * 16, column = warp / 2 * kColumns;
  // Tiles of queries of the first head, then of the next.
  const int tiles = (head.L_q + kM - 1) / kM, all = tiles * static_cast<int>(heads);
  const auto begin = [&](int tile) {
    const int64_t h = h_kv * heads + tile / tiles;
    load_rows<kM, kThreads, kD>(rows_of<T>(c.q, c.q_strides, head.span.b, h, 0, head.L_q, c.D),
                                tile % tiles * kM, q_tile);
    load_rows<kM, kThreads, kD>(
        rows_of<T>(a.grad_output, a.grad_output_strides, head.span.b, h, 0, head.L_q, c.D_v),
        tile % tiles * kM, grad_output_tile);
  };

  load_rows<kN, kThreads, kD>(head.k<T>(), 0, k_tile);
  load_rows<kN, kThreads, kD>(head.v<T>(), 0, v_tile);
  if (all > 0) begin(0);
  fd::cp_async_commit();
  const int64_t first_row = lse_index(c, head.span, head.h, 0);
  for (int64_t i = warp; i < heads * head.L_q; i += kThreads / 32)
    make_row_value<T>(a, all_values, first_row + i);
  const TileRange queries = head.queries<1>(j, 16);
  float grad_k[kD / 8][4] = {}, grad_v[kD / 8][4] = {};
  for (int tile = 0; tile < all; ++tile) {
    fd::cp_async_wait<0>();
    __syncthreads();
    head.h = h_kv * heads + tile / tiles;
    const int i = tile % tiles * kM;
    const ScoreTile<true, kM / 8> place{j, i};
    float s[kM / 8][4], grad[kM / 8][4];
    if (j < head.L_k && i < queries.end && i + kM > queries.first) {
      scores_and_gradients<T, kD, true>(head, place, all_values + lse_index(c, head.span, head.h, 0), k_tile,
                                        q_tile, v_tile, grad_output_tile, j, s, grad);
      multiply_add<T, kD>(s, grad_output_tile, grad_v);
      product_gradients<T, kD>(head, k_tile, q_tile, j, s, grad);
      multiply_add<T, kD>(grad, q_tile, grad_k);
    } else {
      place.for_each([&](int n, int e, int, int) { grad[n][e] = 0; });
    }
    keep_gradients<T>(grad, gradients + j * kGradientsRow<T>);
    __syncthreads();
    if (tile + 1 < all) begin(tile + 1);
    fd::cp_async_commit();
    float grad_q[kColumns / 8][4] = {};
    if (column < c.D)
      multiply_by_keys<T, kD>(gradients, row, k_tile, column, head.keys<16>(i + row, 16), grad_q);
    const float scale[2] = {c.scale, c.scale};
    T* to = static_cast<T*>(a.grad_q) + query_row(c, head.span, head.h, 0) * c.D + column;
    store_rows(grad_q, scale, to, c.D, i + row, head.L_q, static_cast<int>(c.D) - column);
  }
  fd::cp_async_wait<0>();
  const int64_t first_key = key_row(c, head.span, h_kv, 0);
  const float scale[2] = {c.scale, c.scale}, one[2] = {1, 1};
  store_rows(grad_k, scale, static_cast<T*>(a.grad_k) + first_key * c.D, c.D, j, head.L_k,
             static_cast<int>(c.D));
  store_rows(grad_v, one, static_cast<T*>(a.grad_v) + first_key * c.D_v, c.D_v, j, head.L_k,
             static_cast<int>(c.D_v));
}

}  // namespace fastdl::cuda
