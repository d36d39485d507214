// output = softmax(scores) v and lse where all keys of a head fit in shared memory: scores of a row are all
// in registers, and the softmax takes one pass. A block of 4 warps takes 64 queries of one head, a warp 16 of
// them. Saves lse in fp64.
#pragma once
#include "ops/attention/attention_multiply.cuh"
#include "ops/attention/attention_softmax.cuh"

namespace fastdl::cuda {

constexpr int kShortThreads = 128, kShortM = 64;
// Keys go through the products in parts of 32: a part that no query of the warp sees is left out.
constexpr int kShortPart = 32;

template <class T, int kD, int kN>
constexpr int short_bytes() {
  return (kShortM + 2 * kN) * kRowBytes<T, kD>;
}

// blocks: of one head.
template <class T, int kD, int kN>
__global__ void __launch_bounds__(kShortThreads, 2)
    attention_short_kernel(const __grid_constant__ AttentionForward a, int blocks) {
  constexpr int kRow = kRowBytes<T, kD>, kParts = kN / kShortPart, kTiles = kShortPart / 8;
  fd::needs_sm80();
  FD_DYNAMIC_SHARED(char, shared);
  const int64_t number = blockIdx.x / blocks;
  const Head head(a.c, number / a.c.H, number % a.c.H);
  char *k_tile = shared + kShortM * kRow, *v_tile = k_tile + kN * kRow;
  const int first = static_cast<int>(blockIdx.x % blocks) * kShortM, row = threadIdx.x / 32 * 16;
  load_rows<kShortM, kShortThreads, kD>(head.q<T>(), first, shared);
  load_rows<kN, kShortThreads, kD>(head.k<T>(), 0, k_tile);
  fd::cp_async_commit();
  load_rows<kN, kShortThreads, kD>(head.v<T>(), 0, v_tile);
  fd::cp_async_commit();
  // v may still be on its way.
  fd::cp_async_wait<1>();
  __syncthreads();
  const TileRange keys = head.keys<kShortPart>(first + row, 16);
  float s[kParts][kTiles][4];
  uint32_t bits[kParts];
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const ScoreTile<false, kTiles> place{first + row, part * kShortPart};
    bits[part] = ~0u;
    if (place.column >= keys.first && place.column < keys.end) {
      multiply_transposed<T, kD>(shared, row, k_tile + place.column * kRow, s[part]);
      show_scores<T>(head, place, s[part]);
      if (a.c.dropout_p > 0) bits[part] = kept(head, place);
    } else {
      place.for_each([&](int n, int e, int, int) { s[part][n][e] = kHidden; });
    }
  }
  OnlineSoftmax<T, kD> softmax(head, ScoreTile<false, kTiles>{first + row, 0}, true);
  softmax.template take<true>(reinterpret_cast<float (&)[kParts * kTiles][4]>(s));
  fd::cp_async_wait<0>();
  __syncthreads();
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int column = part * kShortPart;
    if (column < keys.first || column >= keys.end) continue;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) s[part][n][e] = bits[part] >> (4 * n + e) & 1 ? s[part][n][e] : 0.0f;
    multiply_add<T, kD>(s[part], v_tile + column * kRow, softmax.output);
  }
  softmax.store(a, head, first + row);
}

}  // namespace fastdl::cuda
