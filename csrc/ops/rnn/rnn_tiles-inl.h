// Products of a step's rows by tiles, sums in fp32: of bf16, rows rounded to it, or of fp32, every number
// in three parts of bf16 (common/cpu/split_gemm-inl.h). One thread, which has configured its tiles. Saves
// nothing. Included where FASTDL_TILES is 1.
//
// Rows and the vectors of a weight lie alike, in chunks along the depth; in a chunk the tiles of 16 rows, or
// of the 16 columns that are kTileVecs vectors, one after the other, each in its parts. 32 rows of a chunk
// take 32 KB, 48 KB in three parts: an L1.

constexpr int64_t kTileVecs = kTileHeight / kLanes;
// Blocks of units may begin at any vector (even_groups); half tiles are for tests of products alone.
static_assert(kTileVecs == 1 || FASTDL_ISA == FASTDL_ISA_AVX2, "a block begins a tile");
constexpr int64_t kBlock = 2 * kTileHeight;  // rows and columns of a block of sums

template <class S>
constexpr int64_t kChunkTiles = kTileParts<S> > 1 ? 8 : 16;
template <class S>
constexpr int64_t kChunkDepth = kChunkTiles<S> * kTileDepth;

template <class S>
FASTDL_INLINE int64_t packed_elements(int64_t tiles, int64_t depth) {
  return tiles * tiles_of(depth, kTileDepth) * kTileParts<S> * kTileElements;
}

// Where tile `at` of `tiles` begins in the chunk that begins at depth k.
template <class S>
FASTDL_INLINE int64_t packed_at(int64_t at, int64_t tiles, int64_t k, int64_t depth) {
  const int64_t left = tiles_of(depth - k, kTileDepth), own = left < kChunkTiles<S> ? left : kChunkTiles<S>;
  return (k / kTileDepth * tiles + at * own) * kTileParts<S> * kTileElements;
}

FASTDL_INLINE int64_t column_tiles(const Weight& w) { return tiles_of(w.vectors(), kTileVecs); }

// Floats in whose place the tiles of a weight fit.
template <class S>
FASTDL_INLINE int64_t tile_floats(const Weight& w) {
  return packed_elements<S>(column_tiles(w), w.depth) / 2;
}

template <class S>
FASTDL_INLINE BFloat16* column_at(const Weight& w, int64_t column, int64_t k) {
  return reinterpret_cast<BFloat16*>(w.panels) + packed_at<S>(column, column_tiles(w), k, w.depth);
}

template <class S>
FASTDL_INLINE int64_t chunk_depth(int64_t depth, int64_t k) {
  return depth - k < kChunkDepth<S> ? depth - k : kChunkDepth<S>;
}

inline void pack_column_tiles(const Weight& w, int64_t column, const BFloat16* plain, AnyRange&) {
  for (int64_t k = 0; k < w.depth; k += kChunkDepth<BFloat16>)
    for (int64_t i = 0; i < kTileVecs; ++i) {
      const int64_t v = column * kTileVecs + i, unit = v / w.gates * kLanes;
      const int64_t n = v < w.vectors() ? w.units - unit : 0, at = i * kLanes;
      const int64_t depth = chunk_depth<BFloat16>(w.depth, k);
      BFloat16* const to = column_at<BFloat16>(w, column, k);
      if (w.transposed)
        pack_right_lanes_transposed(plain + (v % w.gates * w.units + unit) * w.depth + k, w.depth, depth, n,
                                    to, at);
      else
        pack_right_lanes(plain + k * w.units + unit, w.units, depth, n, to, at);
    }
}

// Two vectors of a row, 32 deep -> its place in a tile, or in each of three.
FASTDL_INLINE void pack_pair(Vec low, Vec high, BFloat16* to, AnyRange&) { store_narrowed(to, low, high); }

#if FASTDL_SPLIT_TILES
inline void pack_column_tiles(const Weight& w, int64_t column, const float* plain, SplitRange& range) {
  static_assert(kTileVecs == 1, "a column of tiles is a vector");
  const DenormalsAreZero mode;
  const int64_t unit = column / w.gates * kLanes, n = units_at(unit, w.units);
  const float* const from =
      w.transposed ? plain + (column % w.gates * w.units + unit) * w.depth : plain + unit;
  const int64_t lane_step = w.transposed ? w.depth : 1, depth_step = w.transposed ? 1 : w.units;
  for (int64_t k = 0; k < w.depth; k += kChunkDepth<float>)
    split<true>({from + k * depth_step, lane_step, depth_step}, n, chunk_depth<float>(w.depth, k),
                column_at<float>(w, column, k), range);
}

FASTDL_INLINE void pack_pair(Vec low, Vec high, BFloat16* to, SplitRange& range) {
  split_row(low, high, to, range);
}
#endif

// Rows [first, last) of `tiles` whole ones, `depth` floats each. Of the last tile's rows that do not exist no
// sum is read.
template <class S>
__attribute__((noinline)) void pack_rows(const float* a, int64_t a_row, int64_t first, int64_t last,
                                         int64_t depth, BFloat16* to, int64_t tiles, RangeOf<S>& range) {
#if FASTDL_SPLIT_TILES
  const DenormalsAreZero mode;
#endif
  const auto some = [depth](const float* from, int64_t d) {
    return d < depth ? load_units(from + d, units_at(d, depth)) : zero();
  };
  RangeOf<S> own = range;
  for (int64_t k = 0; k < depth; k += kChunkDepth<S>)
    for (int64_t row = first; row < last; ++row) {
      const float* const from = a + row * a_row;
      BFloat16* at = to + packed_at<S>(row / kTileHeight, tiles, k, depth) + row % kTileHeight * kTileDepth;
      for (int64_t d = k, end = k + chunk_depth<S>(depth, k); d < end;
           d += kTileDepth, at += kTileParts<S> * kTileElements)
        for (int64_t i = 0; i < kTileDepth; i += 2 * kLanes)
          pack_pair(some(from, d + i), some(from, d + i + kLanes), at + i, own);
    }
  range = own;
}

// A block of sums over one chunk, whole tiles.
#if FASTDL_TILE_REGISTERS
template <int kRows, int kColumns, bool kAdd>
FASTDL_INLINE void chunk_sums(const BFloat16* left, const BFloat16* right, int64_t depth, float* sums,
                              int64_t sums_row, BFloat16) {
  tile_block<kRows, kColumns, kAdd>(left_tiles(left, depth), right_tiles(right, depth),
                                    tiles_of(depth, kTileDepth), sums, sums_row);
}
#endif
#if FASTDL_SPLIT_TILES
template <int kRows, int kColumns, bool kAdd>
FASTDL_INLINE void chunk_sums(const BFloat16* left, const BFloat16* right, int64_t depth, float* sums,
                              int64_t sums_row, float) {
  split_block<kRows, kColumns, kAdd>(split_panels(left, depth), split_panels(right, depth), depth, nullptr,
                                     sums, sums_row);
}
#endif
// Columns in tiles.
template <class S, bool kAdd>
FASTDL_INLINE void tile_sums(int64_t rows, int64_t columns, const BFloat16* left, const BFloat16* right,
                             int64_t depth, float* sums, int64_t sums_row) {
#if !FASTDL_TILE_REGISTERS
  return multiply_tiles<kAdd>(rows, depth, columns * kTileHeight, left_tiles(left, depth),
                              right_tiles(right, depth), sums, sums_row);
#else
  if (rows > kTileHeight) {
    if (columns == 2) return chunk_sums<2, 2, kAdd>(left, right, depth, sums, sums_row, S{});
    return chunk_sums<2, 1, kAdd>(left, right, depth, sums, sums_row, S{});
  }
  if (columns == 2) return chunk_sums<1, 2, kAdd>(left, right, depth, sums, sums_row, S{});
  chunk_sums<1, 1, kAdd>(left, right, depth, sums, sums_row, S{});
#endif
}

// Vectors [first, first + count) of the product with at most kBlock rows from `row` on, of `tiles` tiles;
// both begin tiles. out rows: count * kLanes.
template <class S>
__attribute__((noinline)) void multiply_column_tiles(const Weight& w, const BFloat16* packed, int64_t tiles,
                                                     int64_t row, int64_t rows, int64_t first, int64_t count,
                                                     float* out, int64_t out_row) {
  alignas(64) float sums[kBlock * kBlock];
  const int64_t begin = first / kTileVecs, end = tiles_of(first + count, kTileVecs);
  for (int64_t k = 0; k < w.depth; k += kChunkDepth<S>) {
    const BFloat16* const left = packed + packed_at<S>(row / kTileHeight, tiles, k, w.depth);
    const int64_t depth = chunk_depth<S>(w.depth, k);
    for (int64_t column = begin; column < end; column += 2) {
      const int64_t columns = end - column > 1 ? 2 : 1;
      const int64_t v = column * kTileVecs - first, left_over = count - v;
      const int64_t vecs = left_over < columns * kTileVecs ? left_over : columns * kTileVecs;
      const BFloat16* const right = column_at<S>(w, column, k);
      const auto multiply_to = [&](float* to, int64_t to_row) __attribute__((always_inline)) {
        k > 0 ? tile_sums<S, true>(rows, columns, left, right, depth, to, to_row)
              : tile_sums<S, false>(rows, columns, left, right, depth, to, to_row);
      };
      if (rows % kTileHeight == 0 && vecs == columns * kTileVecs) {
        multiply_to(out + v * kLanes, out_row);
        continue;
      }
      const auto each = [&](const auto& f) __attribute__((always_inline)) {
        for (int64_t j = 0; j < rows; ++j)
          for (int64_t l = 0; l < vecs; ++l)
            f(out + j * out_row + (v + l) * kLanes, sums + j * kBlock + l * kLanes);
      };
      // In the order of whole blocks: how rows are cut changes no sum.
      if (k > 0) each([](const float* from, float* to) { store(to, load(from)); });
      multiply_to(sums, kBlock);
      each([](float* to, const float* from) { store(to, load(from)); });
    }
  }
}
