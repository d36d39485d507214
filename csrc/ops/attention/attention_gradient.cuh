// The gradient of a warp's tile of scores, from scores computed again and the gradient of their powers. What
// backward needs of a query's row lies in 16 bytes, made by attention_delta.cuh. Saves nothing.
#pragma once
#include "common/cuda/reduce.cuh"
#include "ops/attention/attention_multiply.cuh"
#include "ops/attention/attention_scores.cuh"

namespace fastdl::cuda {

// lse in two parts, since one float would be wrong by more than the powers may be (+inf for a row that sees
// nothing: its powers are 0); delta = sum_d grad_output output - grad_lse.
struct alignas(16) RowValue {
  float near, rest, delta, unused;
};

// A block takes 16 rows a warp, of queries or of keys, and passes kBackwardN of the others at a time.
template <class T, int kD>
constexpr int kBackwardWarps = sizeof(T) == 4 && kD > 64 ? 2 : 4;
template <class T, int kD>
constexpr int kBackwardM = 16 * kBackwardWarps<T, kD>;
template <class T>
constexpr int kBackwardN = sizeof(T) == 2 ? 32 : 16;

template <class T, int kD>
constexpr int backward_bytes(int stages) {
  return 2 * (kBackwardM<T, kD> + stages * kBackwardN<T>)*kRowBytes<T, kD>;
}

FD_DEVICE RowValue row_value(const RowValue* values, int i, int count) {
  return i < count ? values[i] : RowValue{INFINITY, 0, 0, 0};
}

// Of row `at` of lse, [B, H, L_q] or [H, total_q], by a warp.
template <class T>
FD_DEVICE void make_row_value(const AttentionBackward& a, RowValue* values, int64_t at) {
  const AttentionCall& c = a.c;
  const int64_t head = at / c.L_q, l = at % c.L_q;
  const bool packed = c.cu_seqlens_q != nullptr;
  const int64_t b = packed ? 0 : head / c.H, h = packed ? head : head % c.H;
  const T* output = static_cast<const T*>(a.output) + (packed ? l * c.H + h : at) * c.D_v;
  const AttentionStrides& s = a.grad_output_strides;
  const T* grad = static_cast<const T*>(a.grad_output) + b * s.b + h * s.h + l * s.l;
  float sum = 0;
  for (int d = threadIdx.x % 32; d < c.D_v; d += 32)
    sum += fd::to_compute(output[d]) * fd::to_compute(grad[d]);
  sum = fd::warp_sum(sum);
  if (threadIdx.x % 32 != 0) return;
  const double lse = a.lse[at];
  const bool closed = lse == -INFINITY;
  const float near = closed ? INFINITY : static_cast<float>(lse);
  const float rest = near == INFINITY ? 0.0f : static_cast<float>(lse - near);
  values[at] = {near, rest, sum - (a.grad_lse ? static_cast<float>(a.grad_lse[at]) : 0.0f), 0};
}

// A score becomes its power with dropout, the gradient of the power that of the score.
template <class T>
FD_DEVICE void score_gradient(const RowValue& row, bool keep, float factor, float& s, float& grad) {
  const float p = power<T>(s - row.near, row.rest);
  const float grad_p = keep ? grad * factor : 0.0f;
  s = keep ? p * factor : 0.0f;
  grad = p * (grad_p - row.delta);
}

// All of a tile; `values` of query 0. The gradient is that of the score with bias.
template <class T, bool kByKey, int kTiles>
FD_DEVICE void score_gradients(const Head& head, const ScoreTile<kByKey, kTiles>& tile,
                               const RowValue* values, float (&s)[kTiles][4], float (&grad)[kTiles][4]) {
  const bool dropout = head.c.dropout_p > 0;
  const uint32_t bits = dropout ? kept(head, tile) : ~0u;
  const float factor = dropout ? 1.0f / (1.0f - head.c.dropout_p) : 1.0f;
#pragma unroll
  for (int n = 0; n < (kByKey ? kTiles : 1); ++n)
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int i = kByKey ? tile.column + fragment_column(n, k) : tile.row + fragment_row(2 * k);
      const RowValue row = row_value(values, i, head.L_q);
    // The scores of query i: two of one tile, or two of each.
#pragma unroll
      for (int m = 0; m < (kByKey ? 1 : kTiles); ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int tile_of = kByKey ? n : m, e = kByKey ? 2 * half + k : 2 * k + half;
          score_gradient<T>(row, bits >> (4 * tile_of + e) & 1, factor, s[tile_of][e], grad[tile_of][e]);
        }
    }
}

// Scores of left rows first .. first + 16 against right rows become powers with dropout, `grad` the gradients
// of the scores with bias (kWithGrad: else no product is spent on them). The second pair of tiles:
// grad_output and v, in the same order.
template <class T, int kD, bool kWithGrad, bool kByKey, int kTiles>
FD_DEVICE void scores_and_gradients(const Head& head, const ScoreTile<kByKey, kTiles>& tile,
                                    const RowValue* values, const char* left, const char* right,
                                    const char* left_of_grad, const char* right_of_grad, int first,
                                    float (&s)[kTiles][4], float (&grad)[kTiles][4]) {
  multiply_transposed<T, kD>(left, first, right, s);
  show_scores<T>(head, tile, s);
  if constexpr (kWithGrad)
    multiply_transposed<T, kD>(left_of_grad, first, right_of_grad, grad);
  else
    tile.for_each([&](int n, int e, int, int) { grad[n][e] = 0; });
  score_gradients<T>(head, tile, values, s, grad);
}

// Gradients of the scores with bias become those of the products. The softcap's slope needs the products
// again: they take the place of the powers, since registers for both are not there.
template <class T, int kD, int kTiles>
FD_DEVICE void product_gradients(const Head& head, const char* left, const char* right, int first,
                                 float (&s)[kTiles][4], float (&grad)[kTiles][4]) {
  const AttentionCall& c = head.c;
  if (c.softcap == 0) return;
  multiply_transposed<T, kD>(left, first, right, s);
  const float factor = c.scale / c.softcap;
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float slope = tanhf(s[n][e] * factor);
      grad[n][e] *= 1.0f - slope * slope;
    }
}

}  // namespace fastdl::cuda
