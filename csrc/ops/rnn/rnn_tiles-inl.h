// Products of a step's rows with a bf16 weight by AMX tiles: rows rounded to bf16, sums in fp32. One thread.
// Saves nothing. Included where FASTDL_TILES is 1.
//
// A tile's 16 columns are kTileVecs vectors of the weight. Along the depth the tiles lie in chunks, in a
// chunk those of 16 columns one after the other: 32 rounded rows of a chunk stay in L1.

constexpr int64_t kTileVecs = kAmxRows / kLanes;
constexpr int64_t kChunkTiles = 16, kChunkDepth = kChunkTiles * kAmxDepth;
constexpr int64_t kBlock = 2 * kAmxRows;  // rows and columns of a block of sums

FASTDL_INLINE int64_t column_tiles(const Weight& w) { return tiles_of(w.vectors(), kTileVecs); }

// Floats in whose place the tiles of a weight fit.
FASTDL_INLINE int64_t tile_floats(const Weight& w) {
  return tiles_of(w.depth, kAmxDepth) * column_tiles(w) * kTileElements / 2;
}

// The tiles of one column of tiles from depth k on, the beginning of a chunk.
FASTDL_INLINE BFloat16* tiles_at(const Weight& w, int64_t column, int64_t k) {
  const int64_t left = tiles_of(w.depth - k, kAmxDepth), own = left < kChunkTiles ? left : kChunkTiles;
  return reinterpret_cast<BFloat16*>(w.panels) +
         (k / kAmxDepth * column_tiles(w) + column * own) * kTileElements;
}

FASTDL_INLINE int64_t chunk_depth(const Weight& w, int64_t k) {
  return w.depth - k < kChunkDepth ? w.depth - k : kChunkDepth;
}

inline void pack_column_tiles(const Weight& w, int64_t column) {
  const BFloat16* const plain = static_cast<const BFloat16*>(w.plain);
  for (int64_t k = 0; k < w.depth; k += kChunkDepth)
    for (int64_t i = 0; i < kTileVecs; ++i) {
      const int64_t v = column * kTileVecs + i, unit = v / w.gates * kLanes;
      const int64_t n = v < w.vectors() ? w.units - unit : 0, at = i * kLanes, depth = chunk_depth(w, k);
      BFloat16* const to = tiles_at(w, column, k);
      if (w.transposed)
        pack_right_lanes_transposed(plain + (v % w.gates * w.units + unit) * w.depth + k, w.depth, depth, n,
                                    to, at);
      else
        pack_right_lanes(plain + k * w.units + unit, w.units, depth, n, to, at);
    }
}

// rows x depth floats -> tiles one after the other, past rows and depth 0.
FASTDL_INLINE void round_rows(const float* a, int64_t a_row, int64_t rows, int64_t depth, BFloat16* to) {
  const auto some = [depth](const float* from, int64_t d) {
    return d < depth ? load_units(from + d, units_at(d, depth)) : zero();
  };
  const int64_t row_tile = tiles_of(depth, kAmxDepth) * kTileElements;
  for (int64_t row = 0; row < whole_tiles(rows, kAmxRows); ++row, a += a_row) {
    BFloat16* const at = to + row / kAmxRows * row_tile + row % kAmxRows * kAmxDepth;
    for (int64_t d = 0; d < whole_tiles(depth, kAmxDepth); d += 2 * kLanes)
      store_narrowed(at + d / kAmxDepth * kTileElements + d % kAmxDepth, row < rows ? some(a, d) : zero(),
                     row < rows ? some(a, d + kLanes) : zero());
  }
}

// A block of sums over one chunk, whole tiles.
FASTDL_INLINE void tile_sums(int64_t rows, int64_t columns, const BFloat16* left, const BFloat16* right,
                             int64_t depth_tiles, float* sums, int64_t sums_row) {
  const LeftTiles a = left_tiles(left, depth_tiles * kAmxDepth);
  if (rows > kAmxRows) {
    if (columns == 2) return tile_block<2, 2, false>(a, right, depth_tiles, sums, sums_row);
    return tile_block<2, 1, false>(a, right, depth_tiles, sums, sums_row);
  }
  if (columns == 2) return tile_block<1, 2, false>(a, right, depth_tiles, sums, sums_row);
  tile_block<1, 1, false>(a, right, depth_tiles, sums, sums_row);
}

// Vectors [first, first + count) of the product, `first` beginning a tile. out rows: count * kLanes.
__attribute__((noinline)) inline void multiply_column_tiles(const Weight& w, int64_t rows, const float* a,
                                                            int64_t a_row, int64_t first, int64_t count,
                                                            float* out, int64_t out_row) {
  alignas(64) BFloat16 left[kBlock * kChunkDepth];
  alignas(64) float sums[kBlock * kBlock];
  const TileUse use;
  const int64_t begin = first / kTileVecs, end = tiles_of(first + count, kTileVecs);
  for (int64_t row = 0; row < rows; row += kBlock) {
    const int64_t m = rows - row < kBlock ? rows - row : kBlock;
    for (int64_t k = 0; k < w.depth; k += kChunkDepth) {
      round_rows(a + row * a_row + k, a_row, m, chunk_depth(w, k), left);
      for (int64_t column = begin; column < end; column += 2) {
        const int64_t columns = end - column > 1 ? 2 : 1,
                      depth_tiles = tiles_of(chunk_depth(w, k), kAmxDepth);
        const int64_t v = column * kTileVecs - first, left_over = count - v;
        const int64_t vecs = left_over < columns * kTileVecs ? left_over : columns * kTileVecs;
        if (k == 0 && m % kAmxRows == 0 && vecs == columns * kTileVecs) {
          tile_sums(m, columns, left, tiles_at(w, column, k), depth_tiles, out + row * out_row + v * kLanes,
                    out_row);
          continue;
        }
        tile_sums(m, columns, left, tiles_at(w, column, k), depth_tiles, sums, kBlock);
        for (int64_t i = 0; i < m; ++i)
          for (int64_t j = 0; j < vecs; ++j) {
            float* const to = out + (row + i) * out_row + (v + j) * kLanes;
            const Vec sum = load(sums + i * kBlock + j * kLanes);
            store(to, k == 0 ? sum : load(to) + sum);
          }
      }
    }
  }
}
