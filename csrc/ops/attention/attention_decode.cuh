// output = softmax(scores) v and lse for few query rows: the rows of all heads of q that share one of k are
// one tile of 16 (or some), the keys are split over blocks, and a block's tile of keys over its four warps.
// Results of warps, then of blocks, are combined in the order of the keys. Saves lse in fp64.
#pragma once
#include "ops/attention/attention_multiply.cuh"
#include "ops/attention/attention_results.cuh"
#include "ops/attention/attention_softmax.cuh"

namespace fastdl::cuda {

constexpr int kDecodeWarps = 4, kDecodeThreads = 32 * kDecodeWarps, kDecodeM = 16;
// Keys of a tile, and of a warp's share.
template <class T>
constexpr int kDecodeN = sizeof(T) == 2 ? 64 : 32;
template <class T>
constexpr int kDecodeShare = kDecodeN<T> / kDecodeWarps;

template <class T, int kD>
constexpr int decode_bytes(int stages) {
  return (kDecodeM + stages * 2 * kDecodeN<T>)*kRowBytes<T, kD>;
}

// How the work of a call is cut.
struct DecodeGrid {
  int row_tiles;  // of a head of k: of 16 rows
  int splits;     // of its keys
};

// Queries of all heads that share one of k, head by head: row h * L_q + i is query i of the h-th of them.
template <int kTiles>
struct FoldedTile {
  static constexpr bool kKeysAreRows = false;
  static constexpr int kCount = kTiles;
  int row, column, L_q, count;

  template <class F>
  FD_DEVICE void for_each(F f) const {
    ScoreTile<false, kTiles>{row, column}.for_each(f);
  }
  // Rows behind the last take its place: nothing of them is stored.
  FD_DEVICE int query(int i) const { return min(i, count - 1) % L_q; }
  FD_DEVICE int head_offset(int i) const { return min(i, count - 1) / L_q; }
  FD_DEVICE int rows(const Head&) const { return count; }
  FD_DEVICE bool seen_whole(const Head& head) const { return head.sees_all(0, L_q, column, 8 * kTiles); }
};

// The 16 rows that begin at `tile.row`, zeros behind the last, into shared memory.
template <class T, int kD, class Tile>
FD_DEVICE void load_folded_rows(const Head& head, const Tile& tile, char* to) {
  const AttentionStrides& at = head.c.q_strides;
  const T* first =
      static_cast<const T*>(head.c.q) + head.span.b * at.b + head.h * at.h + head.span.q_first * at.l;
  constexpr int kChunks = kD / kChunk<T>;
  for (int i = threadIdx.x; i < kDecodeM * kChunks; i += kDecodeThreads) {
    const int row = i / kChunks, column = i % kChunks * kChunk<T>;
    const T* from =
        first + tile.head_offset(tile.row + row) * at.h + tile.query(tile.row + row) * at.l + column;
    const int inside = tile.row + row < tile.count ? static_cast<int>(head.c.D) - column : 0;
    fd::Vector<T, kChunk<T>> v;
#pragma unroll
    for (int k = 0; k < kChunk<T>; ++k) v.value[k] = k < inside ? from[k] : fd::from_compute<T>(0);
    fd::store_vector(reinterpret_cast<T*>(to + swizzled<T, kD>(row, i % kChunks)), v);
  }
}

// Partial results: [tile of rows][split][16 rows], with one split none.
template <class T, int kD>
__global__ void __launch_bounds__(kDecodeThreads, 2)
    attention_decode_kernel(const __grid_constant__ AttentionForward a, float* partials, DecodeGrid grid,
                            int stages) {
  constexpr int kN = kDecodeN<T>, kShare = kDecodeShare<T>, kRow = kRowBytes<T, kD>, kTileBytes = kN * kRow;
  check_architecture<T, kD>();
  FD_DYNAMIC_SHARED(char, shared);
  const AttentionCall& c = a.c;
  const int split = static_cast<int>(blockIdx.x % grid.splits);
  const int64_t row_tile = blockIdx.x / grid.splits, group = row_tile / grid.row_tiles, heads = c.H / c.H_kv;
  const Head head(c, group / c.H_kv, group % c.H_kv * heads);
  const int rows = static_cast<int>(heads) * head.L_q,
            first = static_cast<int>(row_tile % grid.row_tiles) * kDecodeM;
  if (first >= rows) return;
  const int warp = threadIdx.x / 32;
  const Rows<T> k = head.k<T>(), v = head.v<T>();
  char* stage_of_0 = shared + kDecodeM * kRow;
  const auto stage = [&](int tile) { return stage_of_0 + (tile & (stages - 1)) * 2 * kTileBytes; };
  const auto begin = [&](int tile, int j) {
    load_rows<kN, kDecodeThreads, kD>(k, j, stage(tile));
    load_rows<kN, kDecodeThreads, kD>(v, j, stage(tile) + kTileBytes);
  };
  const TileRange keys = head.keys<kN>(0, head.L_q);
  const int tiles = (max(keys.end - keys.first, 0) + kN - 1) / kN,
            share = (tiles + grid.splits - 1) / grid.splits;
  const int key = keys.first + split * share * kN, end = min(key + share * kN, keys.end);

  FoldedTile<kShare / 8> place{first, key + warp * kShare, head.L_q, rows};
  OnlineSoftmax<T, kD> softmax(head, place, split == 0 && warp == 0);
  if (key < end) begin(0, key);
  fd::cp_async_commit();
  load_folded_rows<T, kD>(head, place, shared);
  for (int tile = 0, j = key; j < end; ++tile, j += kN, place.column += kN) {
    // After the barrier tile `tile` is there for everyone, and nobody reads the other stage.
    fd::cp_async_wait<0>();
    __syncthreads();
    const bool more = j + kN < end;
    if (more && stages > 1) begin(tile + 1, j + kN);
    fd::cp_async_commit();
    float s[kShare / 8][4];
    const char* k_rows = stage(tile) + warp * kShare * kRow;
    multiply_transposed<T, kD>(shared, 0, k_rows, s);
    show_scores<T>(head, place, s);
    softmax.take(s);
    if (c.dropout_p > 0) {
      const uint32_t bits = kept(head, place);
      place.for_each([&](int n, int e, int, int) { s[n][e] = bits >> (4 * n + e) & 1 ? s[n][e] : 0.0f; });
    }
    multiply_add<T, kD>(s, k_rows + kTileBytes, softmax.output);
    if (more && stages == 1) {
      __syncthreads();
      begin(tile + 1, j + kN);
      fd::cp_async_commit();
    }
  }
  fd::cp_async_wait<0>();
  __syncthreads();
  // The tiles make room for the results of the warps.
  float* results = reinterpret_cast<float*>(shared);
  const int floats = result_floats(kD);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float* to = results + (warp * kDecodeM + fragment_row(2 * half)) * floats;
    const float total = quad_sum(softmax.total[half]);
    if (threadIdx.x % 4 == 0) to[0] = softmax.highest[half], to[1] = total;
#pragma unroll
    for (int n = 0; n < kD / 8; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) to[2 + fragment_column(n, e)] = softmax.output[n][2 * half + e];
  }
  __syncthreads();
  for (int row = warp; row < kDecodeM && first + row < rows; row += kDecodeWarps) {
    const RowResult<kD> result =
        combine_results<T, kD>(results + row * floats, kDecodeM * floats, kDecodeWarps, kD);
    const int width = static_cast<int>(c.D_v), i = first + row;
    if (grid.splits == 1)
      finish_row<T>(a, head.span, head.h + i / head.L_q, i % head.L_q, result);
    else
      store_result(result,
                   partials + ((row_tile * grid.splits + split) * kDecodeM + row) * result_floats(width),
                   width);
  }
}

// A block a row, its warps a range of the splits each. rows: of a tile, at most 16.
template <class T, int kD>
__global__ void __launch_bounds__(kDecodeThreads)
    attention_combine_kernel(const __grid_constant__ AttentionForward a, const float* partials,
                             DecodeGrid grid, int rows) {
  FD_SHARED(float, results, [kDecodeWarps * (kD + 2)]);
  const AttentionCall& c = a.c;
  const int64_t row_tile = blockIdx.x / rows, group = row_tile / grid.row_tiles, heads = c.H / c.H_kv;
  const Head head(c, group / c.H_kv, group % c.H_kv * heads);
  const int row = static_cast<int>(blockIdx.x % rows),
            i = static_cast<int>(row_tile % grid.row_tiles) * kDecodeM + row;
  if (i >= heads * head.L_q) return;
  const int warp = threadIdx.x / 32, width = static_cast<int>(c.D_v), floats = result_floats(width);
  const int share = (grid.splits + kDecodeWarps - 1) / kDecodeWarps, split = min(warp * share, grid.splits);
  const float* first = partials + ((row_tile * grid.splits + split) * kDecodeM + row) * floats;
  const RowResult<kD> part =
      combine_results<T, kD>(first, int64_t{kDecodeM} * floats, min(share, grid.splits - split), width);
  store_result(part, results + warp * floats, width);
  __syncthreads();
  if (warp > 0) return;
  finish_row<T>(a, head.span, head.h + i / head.L_q, i % head.L_q,
                combine_results<T, kD>(results, floats, kDecodeWarps, width));
}

}  // namespace fastdl::cuda
