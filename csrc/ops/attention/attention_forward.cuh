// output = softmax(scores) v and lse by online softmax over tiles of keys; scores stay in registers.
// A block of 4 warps takes 64 queries of one head, a warp 16 of them; tiles of k and v come by cp.async, the
// next one while one is multiplied (one stage alone where shared memory is short). Saves lse in fp64.
#pragma once
#include "ops/attention/attention_multiply.cuh"
#include "ops/attention/attention_scores.cuh"

namespace fastdl::cuda {

constexpr int kForwardThreads = 128, kForwardM = 64;
// Keys of a tile: at most 32 registers of scores, and with q and one stage at most 96 KB of shared memory.
template <class T, int kD>
constexpr int kForwardN = (sizeof(T) == 2 ? 64 : 32) / (kD == 256 ? 2 : 1);

template <class T, int kD>
constexpr int forward_bytes(int stages) {
  return (kForwardM + stages * 2 * kForwardN<T, kD>)*kRowBytes<T, kD>;
}

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

  FD_DEVICE explicit OnlineSoftmax(const Head& head) {
    float sink = kHidden;
    if (head.c.sink) sink = head.c.sink[head.h];
    for (int half = 0; half < 2; ++half) {
      highest[half] = sink;
      total[half] = sink == kHidden || threadIdx.x % 4 ? 0.0f : 1.0f;
    }
  }
  // Scores become powers; what came before is scaled to the new maximum.
  template <int kTiles>
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

// The last queries of a causal call see the most keys: their blocks go first. blocks: of one head.
template <class T, int kD>
__global__ void __launch_bounds__(kForwardThreads, kD == 64 ? 0 : 2)
    attention_forward_kernel(const __grid_constant__ AttentionForward a, int blocks, int stages) {
  constexpr int kN = kForwardN<T, kD>, kTileBytes = kN * kRowBytes<T, kD>;
  check_architecture<T, kD>();
  FD_DYNAMIC_SHARED(char, shared);
  const int64_t number = blockIdx.x / blocks;
  const Head head(a.c, number / a.c.H, number % a.c.H);
  const int first = (blocks - 1 - static_cast<int>(blockIdx.x % blocks)) * kForwardM;
  if (first >= head.L_q) return;
  const int warp_row = threadIdx.x / 32 * 16;
  const Rows<T> k = head.k<T>(), v = head.v<T>();
  char* stage_of_0 = shared + kForwardM * kRowBytes<T, kD>;
  const auto stage = [&](int tile) { return stage_of_0 + (tile & (stages - 1)) * 2 * kTileBytes; };
  const auto begin = [&](int tile, int j) {
    load_rows<kN, kForwardThreads, kD>(k, j, stage(tile));
    load_rows<kN, kForwardThreads, kD>(v, j, stage(tile) + kTileBytes);
  };

  OnlineSoftmax<T, kD> softmax(head);
  const TileRange keys = head.keys<kN>(first, kForwardM);
  load_rows<kForwardM, kForwardThreads, kD>(head.q<T>(), first, shared);
  if (keys.first < keys.end) begin(0, keys.first);
  fd::cp_async_commit();
  for (int tile = 0, j = keys.first; j < keys.end; ++tile, j += kN) {
    // After the barrier tile `tile` is there for everyone, and nobody reads the other stage.
    fd::cp_async_wait<0>();
    __syncthreads();
    const bool more = j + kN < keys.end;
    if (more && stages > 1) begin(tile + 1, j + kN);
    fd::cp_async_commit();
    float s[kN / 8][4];
    multiply_transposed<T, kD>(shared, warp_row, stage(tile), s);
    const ScoreTile<false, kN / 8> place{first + warp_row, j};
    show_scores<T>(head, place, s);
    softmax.take(s);
    if (a.c.dropout_p > 0) {
      const uint32_t bits = kept(head, place);
      place.for_each([&](int n, int e, int, int) { s[n][e] = bits >> (4 * n + e) & 1 ? s[n][e] : 0.0f; });
    }
    multiply_add<T, kD>(s, stage(tile) + kTileBytes, softmax.output);
    if (more && stages == 1) {
      __syncthreads();
      begin(tile + 1, j + kN);
      fd::cp_async_commit();
    }
  }
  fd::cp_async_wait<0>();
  softmax.store(a, head, first + warp_row);
}

}  // namespace fastdl::cuda
