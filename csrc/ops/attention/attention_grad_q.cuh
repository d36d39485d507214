// grad_q: the gradient of the scores times k. A block takes 16 queries a warp of one head and passes the keys
// they see, the next tile of k and v on its way while one is multiplied. Saves nothing.
#pragma once
#include "ops/attention/attention_gradient.cuh"

namespace fastdl::cuda {

// blocks: of one head.
template <class T, int kD>
__global__ void __launch_bounds__(32 * kBackwardWarps<T, kD>, 2)
    attention_grad_q_kernel(const __grid_constant__ AttentionBackward a, const RowValue* all_values,
                            int blocks, int stages) {
  constexpr int kM = kBackwardM<T, kD>, kN = kBackwardN<T>, kThreads = 2 * kM, kRow = kRowBytes<T, kD>;
  check_architecture<T, kD>();
  FD_DYNAMIC_SHARED(char, shared);
  const AttentionCall& c = a.c;
  const int64_t number = blockIdx.x / blocks;
  const Head head(c, number / c.H, number % c.H);
  const int first = (blocks - 1 - static_cast<int>(blockIdx.x % blocks)) * kM;
  if (first >= head.L_q) return;
  const int warp_row = threadIdx.x / 32 * 16;
  const Rows<T> k = head.k<T>(), v = head.v<T>();
  const Rows<T> grad_output = rows_of<T>(a.grad_output, a.grad_output_strides, head.span.b, head.h,
                                         head.span.q_first, head.L_q, c.D_v);
  const RowValue* values = all_values + lse_index(c, head.span, head.h, 0);
  char *q_tile = shared, *grad_output_tile = shared + kM * kRow, *stage_of_0 = shared + 2 * kM * kRow;
  const auto stage = [&](int tile) { return stage_of_0 + (tile & (stages - 1)) * 2 * kN * kRow; };
  const auto begin = [&](int tile, int j) {
    load_rows<kN, kThreads, kD>(k, j, stage(tile));
    load_rows<kN, kThreads, kD>(v, j, stage(tile) + kN * kRow);
  };

  float grad_q[kD / 8][4] = {};
  const TileRange keys = head.keys<kN>(first, kM);
  load_rows<kM, kThreads, kD>(head.q<T>(), first, q_tile);
  load_rows<kM, kThreads, kD>(grad_output, first, grad_output_tile);
  if (keys.first < keys.end) begin(0, keys.first);
  fd::cp_async_commit();
  for (int tile = 0, j = keys.first; j < keys.end; ++tile, j += kN) {
    fd::cp_async_wait<0>();
    __syncthreads();
    const bool more = j + kN < keys.end;
    if (more && stages > 1) begin(tile + 1, j + kN);
    fd::cp_async_commit();
    float s[kN / 8][4], grad[kN / 8][4];
    const ScoreTile<false, kN / 8> place{first + warp_row, j};
    const char *k_tile = stage(tile), *v_tile = k_tile + kN * kRow;
    scores_and_gradients<T, kD, true>(head, place, values, q_tile, k_tile, grad_output_tile, v_tile, warp_row,
                                      s, grad);
    product_gradients<T, kD>(head, q_tile, k_tile, warp_row, s, grad);
    multiply_add<T, kD>(grad, k_tile, grad_q);
    if (more && stages == 1) {
      __syncthreads();
      begin(tile + 1, j + kN);
      fd::cp_async_commit();
    }
  }
  fd::cp_async_wait<0>();
  const float scale[2] = {c.scale, c.scale};
  T* to = static_cast<T*>(a.grad_q) + query_row(c, head.span, head.h, 0) * c.D;
  store_rows(grad_q, scale, to, (c.cu_seqlens_q ? c.H : 1) * c.D, first + warp_row, head.L_q,
             static_cast<int>(c.D));
}

}  // namespace fastdl::cuda
