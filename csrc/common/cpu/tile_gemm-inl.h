// Products of small bf16 matrices by tiles: C[rows, columns] (+)= A[rows, depth] B[depth, columns], fp32
// sums, every size rounded up to whole tiles, of which some instruction sets write no rows that are not
// there. One thread, which holds a TileUse. Saves nothing.
// Included after tiles-inl.h and dot-inl.h, once per instruction set that has FASTDL_TILES: no include guard.

FASTDL_INLINE int64_t tiles_of(int64_t n, int64_t size) { return (n + size - 1) / size; }
FASTDL_INLINE int64_t whole_tiles(int64_t n, int64_t size) { return tiles_of(n, size) * size; }

constexpr int64_t kTileElements = kTileHeight * kTileDepth;

// A as rows, or as whole tiles one after the other: steps in elements.
struct LeftTiles {
  const BFloat16* at;
  int64_t row, row_tile, depth_tile;
};
FASTDL_INLINE LeftTiles left_rows(const BFloat16* at, int64_t row) {
  return {at, row, kTileHeight * row, kTileDepth};
}
FASTDL_INLINE LeftTiles left_tiles(const BFloat16* at, int64_t depth) {
  return {at, kTileDepth, tiles_of(depth, kTileDepth) * kTileElements, kTileElements};
}

// B as whole tiles, those of 16 columns one after the other: elements from these to the next ones.
struct RightTiles {
  const BFloat16* at;
  int64_t column_tile;
};
FASTDL_INLINE RightTiles right_tiles(const BFloat16* at, int64_t depth) {
  return {at, tiles_of(depth, kTileDepth) * kTileElements};
}

// Elements of B: whole tiles, those of 16 columns one after the other.
FASTDL_INLINE int64_t right_elements(int64_t depth, int64_t columns) {
  return tiles_of(depth, kTileDepth) * tiles_of(columns, kTileHeight) * kTileElements;
}

#if FASTDL_ISA >= FASTDL_ISA_AVX512BF16
// Elements i and kLanes + i in lane i.
FASTDL_INLINE VecBits interleaved_halves(__m512bh halves) {
  VecBits at;
  for (int i = 0; i < kLanes; ++i) at[i] = static_cast<uint32_t>(i | (kLanes + i) << 16);
  return reinterpret_cast<VecBits>(
      _mm512_permutexvar_epi16(reinterpret_cast<__m512i>(at), reinterpret_cast<__m512i>(halves)));
}
#endif

// The two elements of a tile's 32-bit lane: rows 2 k and 2 k + 1 of B, or of what is to be transposed.
FASTDL_INLINE VecBits bit_pair_lanes(const BFloat16* first, const BFloat16* second, int n) {
  return load_bits(first, n) | (second == nullptr ? VecBits{} : load_bits(second, n) << 16);
}
FASTDL_INLINE VecBits bit_pair_lanes(const float* first, const float* second, int n) {
  const Vec low = load_some(first, n), high = second == nullptr ? zero() : load_some(second, n);
#if FASTDL_ISA >= FASTDL_ISA_AVX512BF16
  return interleaved_halves(_mm512_cvtne2ps_pbh(high, low));
#else
  return rounded_to_upper_half(low) >> 16 | (rounded_to_upper_half(high) & 0xffff0000);
#endif
}

FASTDL_INLINE void store_lanes(BFloat16* p, VecBits lanes) { std::memcpy(p, &lanes, sizeof(lanes)); }

// kLanes columns of B, from the column `at` of their tiles on: row pairs of from, [depth][row_stride], of
// bf16 or of fp32 rounded to it. Past depth and columns: 0.
template <class T>
FASTDL_INLINE void pack_right_lanes(const T* from, int64_t row_stride, int64_t depth, int64_t columns,
                                    BFloat16* tiles, int64_t at) {
  const int n = static_cast<int>(columns < 0 ? 0 : columns < kLanes ? columns : kLanes);
  for (int64_t pair = 0; pair < tiles_of(depth, kTileDepth) * kTileHeight; ++pair) {
    const T* first = from + 2 * pair * row_stride;
    const T* second = 2 * pair + 1 < depth ? first + row_stride : nullptr;
    const VecBits lanes = 2 * pair < depth && n > 0 ? bit_pair_lanes(first, second, n) : VecBits{};
    store_lanes(tiles + pair * kTileDepth + 2 * at, lanes);
  }
}

// B = from, [depth][row_stride].
template <class T>
inline void pack_right(const T* from, int64_t row_stride, int64_t depth, int64_t columns, BFloat16* to) {
  const int64_t depth_tiles = tiles_of(depth, kTileDepth);
  for (int64_t j = 0; j < whole_tiles(columns, kTileHeight); j += kLanes)
    pack_right_lanes(from + j, row_stride, depth, columns - j,
                     to + j / kTileHeight * depth_tiles * kTileElements, j % kTileHeight);
}

// rows[i] in 32-bit lanes -> column i of the kLanes x kLanes part (row, column) of a tile.
FASTDL_INLINE void store_transposed(Vec (&rows)[kLanes], BFloat16* tile, int64_t row, int64_t column) {
  transpose(rows);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    store_lanes(tile + (row + i) * kTileDepth + 2 * column, reinterpret_cast<VecBits>(rows[i]));
}

// The same of from^T, from [columns][row_stride].
FASTDL_INLINE void pack_right_lanes_transposed(const BFloat16* from, int64_t row_stride, int64_t depth,
                                               int64_t columns, BFloat16* tiles, int64_t at) {
  for (int64_t d = 0; d < whole_tiles(depth, kTileDepth); d += 2 * kLanes) {
    const int64_t left = depth - d;
    const int n = static_cast<int>(left < 0 ? 0 : left < 2 * kLanes ? left : 2 * kLanes);
    Vec rows[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const BFloat16* source = from + i * row_stride + d;
      rows[i] = i >= columns || n == 0
                    ? zero()
                    : reinterpret_cast<Vec>(n == 2 * kLanes ? Dot<BFloat16>::get(source)
                                                            : Dot<BFloat16>::get_first(source, n));
    }
    store_transposed(rows, tiles + d / kTileDepth * kTileElements, d % kTileDepth / 2, at);
  }
}

// B = from^T, from [columns][row_stride].
inline void pack_right_transposed(const BFloat16* from, int64_t row_stride, int64_t depth, int64_t columns,
                                  BFloat16* to) {
  const int64_t depth_tiles = tiles_of(depth, kTileDepth);
  for (int64_t j = 0; j < whole_tiles(columns, kTileHeight); j += kLanes)
    pack_right_lanes_transposed(from + j * row_stride, row_stride, depth, columns - j,
                                to + j / kTileHeight * depth_tiles * kTileElements, j % kTileHeight);
}

// A = from^T as tiles, from [depth][row_stride]. Past rows and depth: 0.
inline void pack_left_transposed(const BFloat16* from, int64_t row_stride, int64_t depth, int64_t rows,
                                 BFloat16* to) {
  const int64_t depth_tiles = tiles_of(depth, kTileDepth), height = whole_tiles(rows, kTileHeight);
  for (int64_t j = 0; j < height; j += kLanes) {
    const int64_t left = rows - j;
    const int n = static_cast<int>(left < 0 ? 0 : left < kLanes ? left : kLanes);
    for (int64_t d = 0; d < depth_tiles * kTileDepth; d += 2 * kLanes) {
      Vec pairs[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const int64_t first = d + 2 * i;
        const BFloat16* source = from + first * row_stride + j;
        pairs[i] = first >= depth || n == 0
                       ? zero()
                       : reinterpret_cast<Vec>(
                             bit_pair_lanes(source, first + 1 < depth ? source + row_stride : nullptr, n));
      }
      BFloat16* tile = to + (j / kTileHeight * depth_tiles + d / kTileDepth) * kTileElements;
      store_transposed(pairs, tile, j % kTileHeight, d % kTileDepth / 2);
    }
  }
}

// rows x width elements -> rows of `stride`, a multiple of kTileDepth, past width 0: A.
inline void copy_rows(const BFloat16* from, int64_t row_stride, int64_t rows, int64_t width, BFloat16* to,
                      int64_t stride) {
  const size_t bytes = static_cast<size_t>(width) * sizeof(BFloat16);
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(to + row * stride, from + row * row_stride, bytes);
    std::memset(to + row * stride + width, 0, static_cast<size_t>(stride) * sizeof(BFloat16) - bytes);
  }
}

FASTDL_INLINE void store_narrowed(BFloat16* p, Vec low, Vec high) {
#if FASTDL_ISA >= FASTDL_ISA_AVX512BF16
  const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
  std::memcpy(p, &both, sizeof(both));
#else
  store(p, low);
  store(p + kLanes, high);
#endif
}

// The first `count` floats of a row, whole vectors -> bf16 at its beginning, 0 up to whole tiles: A.
FASTDL_INLINE void narrow_in_place(float* row, int64_t count) {
  BFloat16* to = reinterpret_cast<BFloat16*>(row);
  for (int64_t j = 0; j < count; j += 2 * kLanes)
    store_narrowed(to + j, load(row + j), j + kLanes < count ? load(row + j + kLanes) : zero());
  for (int64_t j = whole_tiles(count, 2 * kLanes); j < whole_tiles(count, kTileDepth); j += 2 * kLanes)
    store_narrowed(to + j, zero(), zero());
}

#if FASTDL_TILE_REGISTERS
#include "common/cpu/tile_registers-inl.h"
#else
#include "common/cpu/tile_dots-inl.h"
#endif
