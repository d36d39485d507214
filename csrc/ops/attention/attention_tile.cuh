// Tiles of rows of q, k, v and grad_output in shared memory: where a 16-byte chunk lies, how rows get there,
// and how sums of a warp's 16 rows get back to memory. Threads take neighbouring chunks of a row.
// Saves nothing.
#pragma once
#include <type_traits>

#include "common/cuda/scalar.cuh"
#include "ops/attention/attention.h"

namespace fastdl::cuda {

// A tile's rows hold kD elements: D or D_v, and zeros up to 64, 128 or 256.
template <class T>
constexpr int kChunk = 16 / static_cast<int>(sizeof(T));
template <class T, int kD>
constexpr int kRowBytes = kD * static_cast<int>(sizeof(T));

// sm_75 has no tensor cores for bf16, and 64 KB of shared memory.
template <class T, int kD>
FD_DEVICE void check_architecture() {
  if constexpr (std::is_same_v<T, __nv_bfloat16> || kD > 128) fd::needs_sm80();
}

// Rows are whole lines of 128 bytes; the chunk is permuted so that eight rows touch all 32 banks once.
template <class T, int kD>
FD_DEVICE int swizzled(int row, int chunk) {
  return row * kRowBytes<T, kD> + ((chunk ^ (row & 7)) << 4);
}

// The rows of one head and sequence in memory.
template <class T>
struct Rows {
  const T* first;
  int64_t stride;
  int count, width;
  bool chunks;  // every row is whole chunks on 16-byte boundaries
};

template <class T>
FD_DEVICE Rows<T> rows_of(const void* tensor, const AttentionStrides& s, int64_t b, int64_t h, int64_t first,
                          int count, int64_t width) {
  Rows<T> rows{static_cast<const T*>(tensor), s.l, count, static_cast<int>(width), false};
  if (count > 0 && width > 0) rows.first += b * s.b + h * s.h + first * s.l;
  rows.chunks =
      reinterpret_cast<uintptr_t>(rows.first) % 16 == 0 && s.l % kChunk<T> == 0 && width % kChunk<T> == 0;
  return rows;
}

// Rows first .. first + kRows into a tile, zeros outside; complete after cp_async_wait and a barrier.
template <int kRows, int kThreads, int kD, class T>
FD_DEVICE void load_rows(const Rows<T>& rows, int first, char* tile) {
  constexpr int kChunks = kD / kChunk<T>, kSteps = kRows * kChunks / kThreads;
  static_assert(kSteps * kThreads == kRows * kChunks);
  if (rows.chunks) {
#pragma unroll 2
    for (int step = 0; step < kSteps; ++step) {
      const int i = threadIdx.x + step * kThreads;
      const int row = i / kChunks, column = i % kChunks * kChunk<T>;
      const bool valid = first + row < rows.count && column < rows.width;
      const T* from = valid ? rows.first + (first + row) * rows.stride + column : rows.first;
      fd::cp_async16(tile + swizzled<T, kD>(row, i % kChunks), from, valid);
    }
    return;
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, column = i % kChunks * kChunk<T>;
    const int inside = first + row < rows.count ? rows.width - column : 0;
    fd::Vector<T, kChunk<T>> v;
#pragma unroll
    for (int k = 0; k < kChunk<T>; ++k)
      v.value[k] = k < inside ? rows.first[(first + row) * rows.stride + column + k] : fd::from_compute<T>(0);
    fd::store_vector(reinterpret_cast<T*>(tile + swizzled<T, kD>(row, i % kChunks)), v);
  }
}

// Fragments of 16 x 8 tiles, as mma.sync deals them: element e of a lane lies in this row and column.
FD_DEVICE int fragment_row(int e) { return threadIdx.x % 32 / 4 + e / 2 * 8; }
FD_DEVICE int fragment_column(int tile, int e) { return tile * 8 + threadIdx.x % 4 * 2 + e % 2; }

// Sums times a factor a row -> rows `row` and on of a contiguous tensor; a factor of 0 gives 0 whatever the
// sum.
template <class T, int kTiles>
FD_DEVICE void store_rows(const float (&sums)[kTiles][4], const float (&factor)[2], T* to, int64_t stride,
                          int row, int count, int width) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int at = row + fragment_row(2 * half);
    if (at >= count) continue;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const int column = fragment_column(n, 0);
      fd::Vector<T, 2> pair;
#pragma unroll
      for (int e = 0; e < 2; ++e)
        pair.value[e] = fd::from_compute<T>(factor[half] == 0 ? 0.0f : sums[n][2 * half + e] * factor[half]);
      T* place = to + at * stride + column;
      if (column + 1 < width && width % 2 == 0)
        fd::store_vector(place, pair);
      else
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (column + e < width) place[e] = pair.value[e];
    }
  }
}

}  // namespace fastdl::cuda
