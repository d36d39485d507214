// Products of a step's rows with a weight, units in vectors: out[row, v * kLanes ..] of unit block v / G,
// gate v % G. The weight is packed into panels once a call, or, for few rows, read as it is, vectors along
// its depth. One thread each. Saves nothing.

// Rows of a product at once: their tile stays in L1. Tiles have 16 rows, two of which share what is loaded.
#if FASTDL_TILES
constexpr int64_t kTileRows = 32;
#else
constexpr int64_t kTileRows = 24;
#endif

// Unit blocks whose vectors fill whole panels.
FASTDL_INLINE constexpr int64_t group_blocks(int64_t gates) {
  int64_t blocks = 1;
  while (gates * blocks % kPanelVecs != 0) ++blocks;
  return blocks;
}

// Vector v over depths [k, k + kLanes) as the panel wants it: [kLanes (depth)][kPanelWidth].
template <class S>
FASTDL_INLINE void pack_transposed(const Weight& w, int64_t v, int64_t k, float* out) {
  const int64_t unit = v / w.gates * kLanes;
  const S* plain = static_cast<const S*>(w.plain) + (v % w.gates * w.units + unit) * w.depth + k;
  const int units = units_at(unit, w.units), depths = units_at(k, w.depth);
  Vec rows[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) rows[i] = i < units ? load_units(plain + i * w.depth, depths) : zero();
  transpose(rows);
  for (int i = 0; i < depths; ++i) store(out + i * kPanelWidth, rows[i]);
}

// Floats for the panels.
template <class S>
int64_t panel_floats(const Weight& w) {
#if FASTDL_TILES
  if constexpr (kByTiles<S>) return tile_floats<S>(w);
#endif
  return w.floats();
}

template <class S>
void pack_panel(const Weight& w, int64_t panel, RangeOf<S>& range) {
#if FASTDL_TILES
  if constexpr (kByTiles<S>) {
    constexpr int64_t kColumns = kPanelVecs / kTileVecs;
    for (int64_t column = panel * kColumns; column < (panel + 1) * kColumns; ++column)
      if (column < column_tiles(w)) pack_column_tiles(w, column, static_cast<const S*>(w.plain), range);
    return;
  }
#endif
  float* out = w.panels + panel * kPanelWidth * w.depth;
  for (int64_t i = 0; i < kPanelVecs; ++i, out += kLanes) {
    const int64_t v = panel * kPanelVecs + i;
    if (v >= w.vectors()) return;
    if (w.transposed) {
      for (int64_t k = 0; k < w.depth; k += kLanes) pack_transposed<S>(w, v, k, out + k * kPanelWidth);
      continue;
    }
    const S* plain = static_cast<const S*>(w.plain) + v * kLanes;
    const int n = units_at(v * kLanes, w.units);
    for (int64_t k = 0; k < w.depth; ++k) store(out + k * kPanelWidth, load_units(plain + k * w.units, n));
  }
}

// The rows of a transposed W that give vector v.
template <class S>
FASTDL_INLINE const S* plain_rows(const Weight& w, int64_t v) {
  return static_cast<const S*>(w.plain) + (v % w.gates * w.units + v / w.gates * kLanes) * w.depth;
}

// kRows rows of a with kLanes rows of W, kCols of them at once; sums along the depth in `partial`. A row of W
// is too short for a prefetcher to follow: AVX2 asks for the rows at `next`, line by line. With whole lines
// in a vector that would be as many prefetches as loads.
template <class S, int kRows, int kCols>
FASTDL_INLINE void dot_columns(const float* a, int64_t a_row, const S* w, const S* next, int64_t depth,
                               int64_t columns, Vec (*partial)[kLanes]) {
  constexpr bool kAhead = FASTDL_ISA == FASTDL_ISA_AVX2;
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(S));  // elements
  Vec sum[kRows][kCols];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kCols; ++j) sum[i][j] = zero();
  // Chosen before the loop: a branch inside would keep products and sums from becoming one fma everywhere.
  const S* rows[kCols];
#pragma GCC unroll 8
  for (int j = 0; j < kCols; ++j) rows[j] = w + (j < columns ? j : 0) * depth;
  const int64_t whole = depth / kLanes * kLanes;
#pragma GCC unroll 1
  for (int64_t k = 0; k < whole; k += kLanes) {
#pragma GCC unroll 16
    for (int64_t i = 0; kAhead && i < kCols * kLanes; i += kLine) __builtin_prefetch(next + k * kCols + i);
    Vec left[kRows];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) left[i] = load(a + i * a_row + k);
#pragma GCC unroll 8
    for (int j = 0; j < kCols; ++j) {
      const Vec right = load(rows[j] + k);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) sum[i][j] = fma(left[i], right, sum[i][j]);
    }
  }
  if (whole < depth) {
    const int n = static_cast<int>(depth - whole);
#pragma GCC unroll 8
    for (int j = 0; j < kCols; ++j) {
      const Vec right = load_first(rows[j] + whole, n);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) sum[i][j] = fma(load_first(a + i * a_row + whole, n), right, sum[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kCols; ++j) partial[i][j] = j < columns ? sum[i][j] : zero();
}

template <class S, int kRows>
FASTDL_INLINE void dot_rows(const Weight& w, const float* a, int64_t a_row, int64_t v, float* out,
                            int64_t out_row) {
  constexpr int kCols = FASTDL_ISA >= FASTDL_ISA_AVX512 || kRows == 1 ? (kLanes < 8 ? kLanes : 8) : 4;
  const int64_t unit = v / w.gates * kLanes;
  const S* plain = plain_rows<S>(w, v);
  const S* next = plain_rows<S>(w, v + 1 < w.vectors() ? v + 1 : v);
  const int64_t units = units_at(unit, w.units);
  Vec partial[kRows][kLanes];
#pragma GCC unroll 1
  for (int64_t j = 0; j < kLanes; j += kCols) {
    if (j < units) {
      dot_columns<S, kRows, kCols>(a, a_row, plain + j * w.depth, next + j * w.depth, w.depth, units - j,
                                   reinterpret_cast<Vec(*)[kLanes]>(&partial[0][j]));
      continue;
    }
    for (int i = 0; i < kRows; ++i)
      for (int k = 0; k < kCols; ++k) partial[i][j + k] = zero();
  }
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
    transpose(partial[i]);
#pragma GCC unroll 4
    for (int half = kLanes / 2; half > 0; half /= 2)
#pragma GCC unroll 8
      for (int k = 0; k < half; ++k) partial[i][k] = partial[i][k] + partial[i][k + half];
    store(out + i * out_row, partial[i][0]);
  }
}

// The kLanes rows of W of a vector stay in L1 while all rows pass.
template <class S>
__attribute__((noinline)) void multiply_plain(const Weight& w, int64_t rows, const float* a, int64_t a_row,
                                              int64_t first, int64_t count, float* out, int64_t out_row) {
  for (int64_t v = first; v < first + count; ++v, out += kLanes) {
    int64_t row = 0;
    for (; row + 3 <= rows; row += 3)
      dot_rows<S, 3>(w, a + row * a_row, a_row, v, out + row * out_row, out_row);
    if (rows - row == 2) dot_rows<S, 2>(w, a + row * a_row, a_row, v, out + row * out_row, out_row);
    if (rows - row == 1) dot_rows<S, 1>(w, a + row * a_row, a_row, v, out + row * out_row, out_row);
  }
}

// The rows of a product: [rows, a_row] and, where tiles multiply them, the same packed, in so many tiles of
// rows.
struct ProductRows {
  const float* a;
  int64_t a_row;
  const BFloat16* tiles;
  int64_t row_tiles;
};

template <class S>
FASTDL_INLINE bool packs_rows(const Weight& w) {
  return kByTiles<S> && w.panels != nullptr;
}

// Elements that packed rows take.
template <class S>
FASTDL_INLINE int64_t packed_row_elements(int64_t rows, int64_t depth) {
#if FASTDL_TILES
  if constexpr (kByTiles<S>) return packed_elements<S>(tiles_of(rows, kTileHeight), depth);
#endif
  return 0;
}

// A block's share of rows, cut where tiles begin.
struct RowShare {
  int64_t from, to;
};
template <class S>
FASTDL_INLINE RowShare row_share(int64_t rows, int64_t block, int64_t blocks) {
  constexpr int64_t kStep = kByTiles<S> ? 16 : 1;
  const int64_t steps = (rows + kStep - 1) / kStep, from = block * steps / blocks * kStep,
                to = (block + 1) * steps / blocks * kStep;
  return {from, to < rows ? to : rows};
}

// A share of the rows, packed if tiles multiply them.
template <class S>
FASTDL_INLINE void pack_share(const Weight& w, const float* a, int64_t a_row, int64_t rows,
                              const RowShare& share, BFloat16* packed, RangeOf<S>& range) {
#if FASTDL_TILES
  if constexpr (kByTiles<S>) {
    if (packs_rows<S>(w))
      pack_rows<S>(a, a_row, share.from, share.to, w.depth, packed, tiles_of(rows, kTileHeight), range);
  }
#endif
}

template <class S>
FASTDL_INLINE ProductRows product_rows(const Weight& w, const float* a, int64_t a_row, int64_t rows,
                                       const BFloat16* packed) {
#if FASTDL_TILES
  if (packs_rows<S>(w)) return {a, a_row, packed, tiles_of(rows, kTileHeight)};
#endif
  return {a, a_row, nullptr, 0};
}

// Vectors [first, first + count) of the product of rows [row, row + rows), which for_tiles gave; packed as
// tiles, `first` begins one. out rows: count * kLanes.
template <class S>
FASTDL_INLINE void multiply(const Weight& w, const ProductRows& left, int64_t row, int64_t rows,
                            int64_t first, int64_t count, float* out, int64_t out_row) {
#if FASTDL_TILES
  if constexpr (kByTiles<S>) {
    if (left.tiles != nullptr)
      return multiply_column_tiles<S>(w, left.tiles, left.row_tiles, row, rows, first, count, out, out_row);
  }
#endif
  const float* const a = left.a + row * left.a_row;
  if (w.panels == nullptr) return multiply_plain<S>(w, rows, a, left.a_row, first, count, out, out_row);
  for (int64_t v = first, end = first + count, some; v < end; v += some, out += some * kLanes) {
    const int64_t within = v % kPanelVecs;
    some = kPanelVecs - within < end - v ? kPanelVecs - within : end - v;
    multiply_panel(rows, some, a, left.a_row,
                   w.panels + v / kPanelVecs * kPanelWidth * w.depth + within * kLanes, w.depth, out,
                   out_row);
  }
}

// f(first row, rows) for pieces of at most kTileRows, as even as can be; those of tiles begin one.
template <class F>
FASTDL_INLINE void for_tiles(int64_t rows, const F& f) {
  int64_t from = 0;
  for (int64_t pieces = (rows + kTileRows - 1) / kTileRows; pieces > 0; --pieces) {
    int64_t some = (rows + pieces - 1) / pieces;
#if FASTDL_TILES
    if (pieces > 1) some = whole_tiles(some, kTileHeight);
#endif
    f(from, some);
    from += some;
    rows -= some;
  }
}
