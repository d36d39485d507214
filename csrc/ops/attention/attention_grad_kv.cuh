// grad_k and grad_v: the gradient of the scores times q, the powers times grad_output. A block takes 16 keys
// a warp of one head of k and passes the queries that see them, of all its heads of q; scores are computed
// with keys as rows, so that they are the left side of both products as they lie. Saves nothing.
#pragma once
#include "ops/attention/attention_gradient.cuh"

namespace fastdl::cuda {

// Larger heads take a kernel for each gradient: both do not fit the registers.
template <class T, int kD>
constexpr bool kGradKvAtOnce = kD <= (sizeof(T) == 2 ? 128 : 64);

// Queries whose scores are in registers at a time. The sums of a head of 128 take 128 of 255 registers.
template <class T, int kD>
constexpr int kGradKvPart = sizeof(T) == 2 && kD == 128 ? 16 : kBackwardN<T>;

// blocks: of one head of k.
template <class T, int kD, bool kOfK, bool kOfV>
__global__ void __launch_bounds__(32 * kBackwardWarps<T, kD>, 2)
    attention_grad_kv_kernel(const __grid_constant__ AttentionBackward a, const RowValue* all_values,
                             int blocks, int stages) {
  constexpr int kM = kBackwardM<T, kD>, kN = kBackwardN<T>, kPart = kGradKvPart<T, kD>;
  constexpr int kThreads = 2 * kM, kRow = kRowBytes<T, kD>;
  check_architecture<T, kD>();
  FD_DYNAMIC_SHARED(char, shared);
  const AttentionCall& c = a.c;
  const int64_t number = blockIdx.x / blocks, h_kv = number % c.H_kv, heads = c.H / c.H_kv;
  Head head(c, number / c.H_kv, h_kv * heads);
  const int first = static_cast<int>(blockIdx.x % blocks) * kM;
  if (first >= head.L_k) return;
  int warp_row = threadIdx.x / 32 * 16;
  char *k_tile = shared, *v_tile = shared + kM * kRow, *stage_of_0 = shared + 2 * kM * kRow;
  const auto stage = [&](int tile) { return stage_of_0 + (tile & (stages - 1)) * 2 * kN * kRow; };
  const TileRange queries = head.queries<kN>(first, kM);
  // Tiles of queries of the first head, then of the next.
  const int tiles = queries.first < queries.end ? (queries.end - queries.first + kN - 1) / kN : 0;
  const int all = tiles * static_cast<int>(heads);
  const auto begin = [&](int tile) {
    head.h = h_kv * heads + tile / tiles;
    const int i = queries.first + tile % tiles * kN;
    load_rows<kN, kThreads, kD>(head.q<T>(), i, stage(tile));
    load_rows<kN, kThreads, kD>(rows_of<T>(a.grad_output, a.grad_output_strides, head.span.b, head.h,
                                           head.span.q_first, head.L_q, c.D_v),
                                i, stage(tile) + kN * kRow);
  };

  float grad_k[kD / 8][4] = {}, grad_v[kD / 8][4] = {};
  load_rows<kM, kThreads, kD>(head.k<T>(), first, k_tile);
  load_rows<kM, kThreads, kD>(head.v<T>(), first, v_tile);
  if (all > 0) begin(0);
  fd::cp_async_commit();
  for (int tile = 0; tile < all; ++tile) {
    fd::cp_async_wait<0>();
    __syncthreads();
    const bool more = tile + 1 < all;
    if (more && stages > 1) begin(tile + 1);
    fd::cp_async_commit();
    head.h = h_kv * heads + tile / tiles;
    const char* tile_of_q = stage(tile);
#pragma unroll 1
    for (int part = 0; part < kN; part += kPart) {
      // Else the addresses of all fragments are kept from one tile to the next, and sums spilled for them.
      warp_row = fd::computed_anew(warp_row);
      float s[kPart / 8][4], grad[kPart / 8][4];
      const ScoreTile<true, kPart / 8> place{first + warp_row, queries.first + tile % tiles * kN + part};
      const char *q_rows = tile_of_q + part * kRow, *grad_output_rows = q_rows + kN * kRow;
      scores_and_gradients<T, kD, kOfK>(head, place, all_values + lse_index(c, head.span, head.h, 0), k_tile,
                                        q_rows, v_tile, grad_output_rows, warp_row, s, grad);
      if constexpr (kOfV) multiply_add<T, kD>(s, grad_output_rows, grad_v);
      if constexpr (kOfK) {
        product_gradients<T, kD>(head, k_tile, q_rows, warp_row, s, grad);
        multiply_add<T, kD>(grad, q_rows, grad_k);
      }
    }
    if (more && stages == 1) {
      __syncthreads();
      begin(tile + 1);
      fd::cp_async_commit();
    }
  }
  fd::cp_async_wait<0>();
  const int64_t row = key_row(c, head.span, h_kv, 0), step = c.cu_seqlens_q ? c.H_kv : 1;
  const float scale[2] = {c.scale, c.scale}, one[2] = {1, 1};
  if constexpr (kOfK)
    store_rows(grad_k, scale, static_cast<T*>(a.grad_k) + row * c.D, step * c.D, first + warp_row, head.L_k,
               static_cast<int>(c.D));
  if constexpr (kOfV)
    store_rows(grad_v, one, static_cast<T*>(a.grad_v) + row * c.D_v, step * c.D_v, first + warp_row, head.L_k,
               static_cast<int>(c.D_v));
}

}  // namespace fastdl::cuda
