// output = softmax(scores) v and lse by online softmax over tiles of keys; scores stay in registers.
// A block of 4 warps takes 64 queries of one head, a warp 16 of them; tiles of k and v come by cp.async, the
// next one while one is multiplied (one stage alone where shared memory is short). Saves lse in fp64.
#pragma once
#include "ops/attention/attention_multiply.cuh"
#include "ops/attention/attention_softmax.cuh"

namespace fastdl::cuda {

constexpr int kForwardThreads = 128, kForwardM = 64;
// Keys of a tile: at most 32 registers of scores, and with q and one stage at most 96 KB of shared memory.
template <class T, int kD>
constexpr int kForwardN = (sizeof(T) == 2 ? 64 : 32) / (kD == 256 ? 2 : 1);

template <class T, int kD>
constexpr int forward_bytes(int stages) {
  return (kForwardM + stages * 2 * kForwardN<T, kD>)*kRowBytes<T, kD>;
}

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

  OnlineSoftmax<T, kD> softmax(head, ScoreTile<false, kN / 8>{first + warp_row, 0}, true);
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
