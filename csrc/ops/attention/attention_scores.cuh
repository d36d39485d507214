// What happens to a warp's tile of scores between the two products: scale, softcap, bias, ALiBi, mask,
// causality, window, dropout. A lane works on the elements of its fragments. Saves nothing.
#pragma once
#include "common/philox.h"
#include "ops/attention/attention_head.cuh"

namespace fastdl::cuda {

constexpr float kHidden = -INFINITY;

// A warp's 16 x (8 * kTiles) scores. kByKey: rows are keys and columns queries, else the other way round.
template <bool kByKey, int kTiles>
struct ScoreTile {
  static constexpr bool kKeysAreRows = kByKey;
  static constexpr int kCount = kTiles;
  int row, column;  // of the first score: query and key of the sequence, or key and query

  // f(tile, element, query, key) for each of the lane's scores.
  template <class F>
  FD_DEVICE void for_each(F f) const {
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int r = row + fragment_row(e), c = column + fragment_column(n, e);
        if constexpr (kByKey)
          f(n, e, c, r);
        else
          f(n, e, r, c);
      }
  }
  // The row of queries is that of the head.
  FD_DEVICE int query(int i) const { return i; }
  FD_DEVICE int head_offset(int) const { return 0; }
  FD_DEVICE int rows(const Head& head) const { return head.L_q; }
  FD_DEVICE bool seen_whole(const Head& head) const {
    return kByKey ? head.sees_all(column, 8 * kTiles, row, 16) : head.sees_all(row, 16, column, 8 * kTiles);
  }
};

// Where the element of query row i and key j of a mask or bias lies, from its first of the head on.
template <class Tile>
FD_DEVICE int64_t offset_in(const AttentionStrides& at, const Tile& tile, int i, int j) {
  return tile.head_offset(i) * at.h + tile.query(i) * at.l + j * at.d;
}

// Products become scores, -inf where the key is hidden. Tile: ScoreTile, or one whose rows are queries of
// several heads (attention_decode.cuh).
template <class T, class Tile, int kTiles>
FD_DEVICE void show_scores(const Head& head, const Tile& tile, float (&s)[kTiles][4]) {
  const AttentionCall& c = head.c;
  tile.for_each([&](int n, int e, int, int) { s[n][e] *= c.scale; });
  if (c.softcap != 0) {
    const float inverse = 1.0f / c.softcap;
    tile.for_each([&](int n, int e, int, int) { s[n][e] = c.softcap * tanhf(s[n][e] * inverse); });
  }
  if (c.bias) {
    const AttentionStrides& at = c.bias_strides;
    const T* bias = static_cast<const T*>(c.bias) + head.span.b * at.b + head.h * at.h;
    tile.for_each([&](int n, int e, int i, int j) {
      if (i < tile.rows(head) && j < head.L_k) s[n][e] += fd::to_compute(bias[offset_in(at, tile, i, j)]);
    });
  }
  if (c.alibi_slopes) {
    const float* slopes = c.alibi_slopes + head.span.number * c.alibi_stride_b + head.h;
    tile.for_each([&](int n, int e, int i, int j) {
      s[n][e] -= slopes[tile.head_offset(i)] * fabsf(static_cast<float>(tile.query(i) + head.shift - j));
    });
  }
  if (c.mask) {
    const AttentionStrides& at = c.mask_strides;
    const uint8_t* mask = c.mask + head.span.b * at.b + head.h * at.h;
    tile.for_each([&](int n, int e, int i, int j) {
      if (i < tile.rows(head) && j < head.L_k && !mask[offset_in(at, tile, i, j)]) s[n][e] = kHidden;
    });
  }
  if (!tile.seen_whole(head))
    tile.for_each([&](int n, int e, int i, int j) {
      if (!head.sees(tile.query(i), j)) s[n][e] = kHidden;
    });
}

// exp(s - reference). Half types: 2^x by one instruction, within their rounding.
template <class T>
FD_DEVICE float power(float s, float reference) {
  if constexpr (sizeof(T) == 2)
    return exp2f((s - reference) * 1.4426950408889634f);
  else
    return expf(s - reference);
}

FD_DEVICE uint32_t word_of(const PhiloxWords& words, int i) {
  const uint32_t low = i & 1 ? words.word[1] : words.word[0], high = i & 1 ? words.word[3] : words.word[2];
  return i & 2 ? high : low;
}

// Bit 4 * tile + element: whether dropout keeps the weight. Key j of query i takes word j % 4 of the counter
// (j / 4, i, head), so each lane computes one counter in two (by key: in four) of those whose words it needs,
// and lanes exchange words.
template <class Tile>
FD_DEVICE uint32_t kept(const Head& head, const Tile& tile) {
  static_assert(Tile::kCount <= 8);
  const AttentionCall& c = head.c;
  const uint32_t threshold = dropout_threshold(c.dropout_p);
  const uint64_t seed = static_cast<uint64_t>(*c.seed);
  const int lane = threadIdx.x % 32;
  uint32_t bits = 0;
  // One tile after the other: side by side their rounds would take the registers of the sums.
#pragma unroll 1
  for (int n = 0; n < Tile::kCount; ++n) {
    if constexpr (Tile::kKeysAreRows) {
      // Lane t of four computes the counter of its element t; the four lanes hold keys 4 k + 0 .. 3.
      const int t = lane / 4 % 4;
      const uint32_t quad = (tile.row + 8 * (t / 2)) / 4 + lane / 16;
      const uint32_t i = tile.column + fragment_column(n, t % 2);
      const PhiloxWords words = philox({{quad, i, head.number(), 0}}, seed);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        uint32_t word = word_of(words, t ^ step);
        if (step > 0) word = __shfl_xor_sync(~0u, word, 4 * step);
        bits |= static_cast<uint32_t>(word >= threshold) << (4 * n + (t ^ step));
      }
    } else {
      // Even lanes compute the counter of their upper row, odd lanes that of their lower one.
      const int odd = lane % 2;
      const uint32_t quad = tile.column / 4 + 2 * n + lane % 4 / 2;
      const int i = tile.row + fragment_row(2 * odd);
      const uint32_t query = tile.query(i), number = head.number() + tile.head_offset(i);
      const PhiloxWords words = philox({{quad, query, number, 0}}, seed);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const uint32_t got = __shfl_xor_sync(~0u, odd ? words.word[e] : words.word[2 + e], 1);
        const uint32_t upper = odd ? got : words.word[e], lower = odd ? words.word[2 + e] : got;
        bits |= static_cast<uint32_t>(upper >= threshold) << (4 * n + e);
        bits |= static_cast<uint32_t>(lower >= threshold) << (4 * n + 2 + e);
      }
    }
  }
  return bits;
}

}  // namespace fastdl::cuda
