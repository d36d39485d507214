// C (+)= A B of tile_gemm-inl.h by AMX's registers. One thread, which has configured its tiles. Saves
// nothing. Included by tile_gemm-inl.h where the instruction set has FASTDL_TILE_REGISTERS.

// One block of C: kRows x kColumns tiles, in registers 0 .. 3; A's in 4 and 5, B's in 6 and 7.
template <int kRows, int kColumns, bool kAdd>
FASTDL_INLINE void tile_block(const LeftTiles& a, const RightTiles& b, int64_t depth_tiles, float* c,
                              int64_t c_row) {
  const int64_t c_bytes = c_row * static_cast<int64_t>(sizeof(float));
  const int64_t a_bytes = a.row * static_cast<int64_t>(sizeof(BFloat16)), b_bytes = 64;
  float* const below = c + kTileHeight * c_row;
  if constexpr (kAdd) {
    load_tile<0>(c, c_bytes);
    if constexpr (kColumns == 2) load_tile<1>(c + kTileHeight, c_bytes);
    if constexpr (kRows == 2) load_tile<2>(below, c_bytes);
    if constexpr (kRows == 2 && kColumns == 2) load_tile<3>(below + kTileHeight, c_bytes);
  } else {
    zero_tile<0>();
    if constexpr (kColumns == 2) zero_tile<1>();
    if constexpr (kRows == 2) zero_tile<2>();
    if constexpr (kRows == 2 && kColumns == 2) zero_tile<3>();
  }
  for (int64_t k = 0; k < depth_tiles; ++k) {
    const BFloat16 *left = a.at + k * a.depth_tile, *right = b.at + k * kTileElements;
    load_tile<4>(left, a_bytes);
    load_tile<6>(right, b_bytes);
    dot_tiles<0, 4, 6>();
    if constexpr (kColumns == 2) {
      load_tile<7>(right + b.column_tile, b_bytes);
      dot_tiles<1, 4, 7>();
    }
    if constexpr (kRows == 2) {
      load_tile<5>(left + a.row_tile, a_bytes);
      dot_tiles<2, 5, 6>();
    }
    if constexpr (kRows == 2 && kColumns == 2) dot_tiles<3, 5, 7>();
  }
  store_tile<0>(c, c_bytes);
  if constexpr (kColumns == 2) store_tile<1>(c + kTileHeight, c_bytes);
  if constexpr (kRows == 2) store_tile<2>(below, c_bytes);
  if constexpr (kRows == 2 && kColumns == 2) store_tile<3>(below + kTileHeight, c_bytes);
}

// C (+)= A B; b may be deeper. c: rows of c_row, which hold whole tiles.
template <bool kAdd>
__attribute__((noinline)) void multiply_tiles(int64_t rows, int64_t depth, int64_t columns, LeftTiles a,
                                              RightTiles b, float* c, int64_t c_row) {
  const int64_t row_tiles = tiles_of(rows, kTileHeight), column_tiles = tiles_of(columns, kTileHeight),
                depth_tiles = tiles_of(depth, kTileDepth);
  const BFloat16* const first = a.at;
  for (int64_t j = 0; j < column_tiles; j += 2, b.at += 2 * b.column_tile) {
    const bool two = j + 1 < column_tiles;
    for (int64_t i = 0; i < row_tiles; i += 2) {
      a.at = first + i * a.row_tile;
      float* const block = c + i * kTileHeight * c_row + j * kTileHeight;
      if (i + 1 < row_tiles) {
        if (two)
          tile_block<2, 2, kAdd>(a, b, depth_tiles, block, c_row);
        else
          tile_block<2, 1, kAdd>(a, b, depth_tiles, block, c_row);
      } else if (two) {
        tile_block<1, 2, kAdd>(a, b, depth_tiles, block, c_row);
      } else {
        tile_block<1, 1, kAdd>(a, b, depth_tiles, block, c_row);
      }
    }
  }
}
