// C (+)= A B of tile_gemm-inl.h by AVX512-BF16: a row of a right tile is a vector, its pairs are multiplied
// by a pair of a row of A. One thread. Saves nothing. Included by tile_gemm-inl.h where the instruction set
// has no FASTDL_TILE_REGISTERS.

// Sums held at once: rows that no tile of A parts, by vectors of columns.
constexpr int kDotBlockRows = 8, kDotBlockVecs = 3;
static_assert(kTileHeight % kDotBlockRows == 0 && kTileHeight == kLanes, "what a block takes");

// Pairs [0, kPairs) of a depth tile.
template <int kRows, int kVecs, int kPairs>
FASTDL_INLINE void dot_pairs(const BFloat16* const (&rows)[kRows], int64_t at, const BFloat16* right,
                             int64_t column_tile, Vec (&sum)[kRows][kVecs]) {
#pragma GCC unroll 2
  for (int k = 0; k < kPairs; ++k) {
    VecBits columns[kVecs];
#pragma GCC unroll 3
    for (int j = 0; j < kVecs; ++j) columns[j] = Dot<BFloat16>::get(right + j * column_tile + k * kTileDepth);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      uint32_t bits;
      std::memcpy(&bits, rows[i] + at + 2 * k, sizeof(bits));
      const VecBits pair = VecBits{} + bits;
#pragma GCC unroll 3
      for (int j = 0; j < kVecs; ++j) sum[i][j] = Dot<BFloat16>::dot(pair, columns[j], sum[i][j]);
    }
  }
}

// One block of C, from pairs of elements along the sum.
template <int kRows, int kVecs, bool kAdd>
FASTDL_INLINE void dot_block(const LeftTiles& a, const RightTiles& b, int64_t pairs, float* c,
                             int64_t c_row) {
  const BFloat16* rows[kRows];
  Vec sum[kRows][kVecs];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    rows[i] = a.at + i * a.row;
#pragma GCC unroll 3
    for (int j = 0; j < kVecs; ++j) sum[i][j] = kAdd ? load(c + i * c_row + j * kLanes) : zero();
  }
  const BFloat16* right = b.at;
  int64_t at = 0;
#pragma GCC unroll 1
  for (; pairs >= kTileHeight; pairs -= kTileHeight, at += a.depth_tile)
#pragma GCC unroll 1
    for (int64_t k = 0; k < kTileDepth; k += 4, right += 2 * kTileDepth)
      dot_pairs<kRows, kVecs, 2>(rows, at + k, right, b.column_tile, sum);
#pragma GCC unroll 1
  for (; pairs > 0; --pairs, at += 2, right += kTileDepth)
    dot_pairs<kRows, kVecs, 1>(rows, at, right, b.column_tile, sum);
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < kVecs; ++j) store(c + i * c_row + j * kLanes, sum[i][j]);
}

template <int kRows, int kVecs, bool kAdd>
FASTDL_INLINE void dot_block_of(int64_t rows, const LeftTiles& a, const RightTiles& b, int64_t pairs,
                                float* c, int64_t c_row) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return dot_block_of<kRows - 1, kVecs, kAdd>(rows, a, b, pairs, c, c_row);
  }
  dot_block<kRows, kVecs, kAdd>(a, b, pairs, c, c_row);
}

// kVecs vectors of columns: the left rows pass one after the other while those stay in L1.
template <int kVecs, bool kAdd>
FASTDL_INLINE void dot_columns_of_tiles(int64_t rows, int64_t pairs, LeftTiles a, const RightTiles& b,
                                        float* c, int64_t c_row) {
  const BFloat16* const first = a.at;
  for (int64_t i = 0; i < rows; i += kDotBlockRows) {
    a.at = first + i / kTileHeight * a.row_tile + i % kTileHeight * a.row;
    dot_block_of<kDotBlockRows, kVecs, kAdd>(rows - i, a, b, pairs, c + i * c_row, c_row);
  }
}

// C (+)= A B; b may be deeper. c: rows of c_row, which hold whole tiles.
template <bool kAdd>
__attribute__((noinline)) void multiply_tiles(int64_t rows, int64_t depth, int64_t columns, LeftTiles a,
                                              RightTiles b, float* c, int64_t c_row) {
  const int64_t pairs = (depth + 1) / 2;
  int64_t vecs = tiles_of(columns, kTileHeight);
  // As even as can be: 4 vectors run as 2 + 2, not as 3 + 1.
  for (int64_t blocks = (vecs + kDotBlockVecs - 1) / kDotBlockVecs; blocks > 0; --blocks) {
    const int64_t some = (vecs + blocks - 1) / blocks;
    if (some == 3) dot_columns_of_tiles<3, kAdd>(rows, pairs, a, b, c, c_row);
    if (some == 2) dot_columns_of_tiles<2, kAdd>(rows, pairs, a, b, c, c_row);
    if (some == 1) dot_columns_of_tiles<1, kAdd>(rows, pairs, a, b, c, c_row);
    b.at += some * b.column_tile, c += some * kLanes, vecs -= some;
  }
}
