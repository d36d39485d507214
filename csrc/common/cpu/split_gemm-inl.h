// Products of fp32 matrices by tiles of bf16: C[rows, columns] = A[rows, depth] B[depth, columns], plus one
// row for all. Each number is the exact sum of three of bf16, h + m + l, each the nearest to what the ones
// before it leave (or, of one of two factors, cut off: kTruncate); of the nine products the six from 2^-16 of
// h h on are summed, in fp32. What is left out is less than 2^-25 of a product: less than its own rounding to
// fp32. Numbers that bf16 rounds to infinity, and those of which parts are denormals, which tiles take for 0,
// are not for it (SplitRange). One thread, which has configured its tiles. Saves nothing. Included after
// tile_gemm-inl.h, once per instruction set, of which those with FASTDL_SPLIT_TILES have it: no include
// guard.

#if FASTDL_SPLIT_TILES

constexpr int64_t kSplitParts = 3;

// Elements of a packed matrix: panels of 16 rows of A, or columns of B, along the depth in tiles, each in
// three parts.
FASTDL_INLINE int64_t split_panel(int64_t depth) {
  return tiles_of(depth, kTileDepth) * kSplitParts * kTileElements;
}
FASTDL_INLINE int64_t split_elements(int64_t lanes, int64_t depth) {
  return tiles_of(lanes, kTileHeight) * split_panel(depth);
}

// A packed matrix and the elements from one of its panels to the next.
struct SplitPanels {
  const BFloat16* at;
  int64_t panel;
};
FASTDL_INLINE SplitPanels split_panels(const BFloat16* at, int64_t depth) { return {at, split_panel(depth)}; }

// As for tiles: an operation on denormals takes 150 cycles, and gradients of gelu are full of them.
struct DenormalsAreZero {
  unsigned before = _mm_getcsr();

  DenormalsAreZero() { _mm_setcsr(before | 0x8040); }
  ~DenormalsAreZero() { _mm_setcsr(before); }
  DenormalsAreZero(const DenormalsAreZero&) = delete;
  DenormalsAreZero& operator=(const DenormalsAreZero&) = delete;
};

// The largest magnitude packed, in bf16, of the elements of a pair apart.
struct SplitRange {
  typedef uint16_t Halves __attribute__((vector_size(FASTDL_VEC_BYTES)));
  Halves largest = {};

  // Of numbers up to v, which is not negative.
  static SplitRange up_to(float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, sizeof(bits));
    SplitRange range;
    range.largest[0] = static_cast<uint16_t>(bits >> 16);
    return range;
  }

  void add(VecBits pairs) { take(reinterpret_cast<Halves>(pairs & 0x7fff7fff)); }
  void widen_by(const SplitRange& other) { take(other.largest); }
  void take(Halves halves) { largest = halves > largest ? halves : largest; }

  int most() const {
    int most = 0;
    for (int i = 0; i < 2 * kLanes; ++i) most = largest[i] > most ? largest[i] : most;
    return most;
  }
  // Whether all are 0, or the larger ones are at least 2^-63, and all below 2^109.
  bool fits() const { return most() == 0 || (most() >= 0x2000 && most() < 0x7600); }
};

// Whether both fit, and no sum of `depth` products can be infinite: of parts with two signs it would be NaN.
FASTDL_INLINE bool fit_together(const SplitRange& a, const SplitRange& b, int64_t depth) {
  const auto exponent = [](const SplitRange& range) { return (range.most() >> 7) - 126; };  // below 2^it
  const int64_t bits = 64 - __builtin_clzll(static_cast<uint64_t>(depth) | 1);
  return a.fits() && b.fits() && exponent(a) + exponent(b) + bits <= 127;
}

// Row `lane` of A, or column of B, lies at `lane * lane_step`; one of the steps is 1.
struct SplitSource {
  const float* at;
  int64_t lane_step, depth_step;
};

// The bf16 nearest to v, which must be finite and not too large: what is left of v in a sum that is 2^16
// times as large (after Dekker 1971). kTruncate: v cut off instead.
template <bool kTruncate>
FASTDL_INLINE Vec upper_part(Vec v) {
  if constexpr (kTruncate)
    return reinterpret_cast<Vec>(reinterpret_cast<VecBits>(v) & (VecBits{} + 0xffff0000));
  const Vec scale = set1(65536), sum = fma(v, scale, v);
  return fma(v, -scale, sum);
}

// Two rows of 16 numbers, `kTileHeight` apart along the depth, -> row i of three tiles, in pairs. kTruncate:
// two thirds of the work, for one of two factors; what is left out is then less than 2^-23 of a product.
template <bool kTruncate = false>
FASTDL_INLINE void split_row(Vec first, Vec second, BFloat16* to, SplitRange& range) {
  const auto put = [&](Vec a, Vec b) __attribute__((always_inline)) {
    const VecBits pairs = reinterpret_cast<VecBits>(a) >> 16 | reinterpret_cast<VecBits>(b);
    store_lanes(to, pairs);
    to += kTileElements;
    return pairs;
  };
  const Vec high_first = upper_part<kTruncate>(first), high_second = upper_part<kTruncate>(second);
  range.add(put(high_first, high_second));
  first = first - high_first, second = second - high_second;
  const Vec middle_first = upper_part<kTruncate>(first), middle_second = upper_part<kTruncate>(second);
  put(middle_first, middle_second);
  put(first - middle_first, second - middle_second);
}

// 16 rows or columns, 32 deep, of which `lanes` and `depths` exist (kWhole: all): three tiles, a lane of
// which holds depths k and k + 16. kDeep: runs lie along the depth; a row of a tile does so of A.
template <bool kRight, bool kDeep, bool kWhole, bool kTruncate>
FASTDL_INLINE void split_tile(const SplitSource& from, int64_t lanes, int64_t depths, BFloat16* tile,
                              SplitRange& range) {
  static_assert(kLanes == kTileHeight && 2 * kLanes == kTileDepth, "a row of a tile is a vector");
  const auto some = [](const float* run, int64_t count)
                        __attribute__((always_inline)) { return kWhole ? load(run) : load_some(run, count); };
  Vec first[kLanes], second[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if constexpr (kDeep) {
      const float* const run = from.at + i * from.lane_step;
      // Each run lies in a page of its own, where no hardware looks ahead.
      if (i < lanes)
        __builtin_prefetch(run + 2 * kTileDepth), __builtin_prefetch(run + 2 * kTileDepth + kLanes);
      first[i] = some(run, i < lanes ? depths : 0);
      second[i] = some(run + kLanes, i < lanes ? depths - kLanes : 0);
    } else {
      const float* const run = from.at + i * from.depth_step;
      first[i] = some(run, i < depths ? lanes : 0);
      second[i] = some(run + kLanes * from.depth_step, i + kLanes < depths ? lanes : 0);
    }
  }
  if constexpr (kDeep == kRight) transpose(first), transpose(second);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) split_row<kTruncate>(first[i], second[i], tile + i * kTileDepth, range);
}

template <bool kRight, bool kDeep, bool kTruncate>
inline void split_runs(const SplitSource& from, int64_t lanes, int64_t depth, BFloat16* to,
                       SplitRange& range) {
  SplitRange own = range;  // in a register: what is stored might be the other one
  for (int64_t i = 0; i < lanes; i += kTileHeight)
    for (int64_t k = 0; k < depth; k += kTileDepth, to += kSplitParts * kTileElements) {
      const SplitSource at = {from.at + i * from.lane_step + k * from.depth_step, from.lane_step,
                              from.depth_step};
      const bool whole = lanes - i >= kTileHeight && depth - k >= kTileDepth;
      if (whole)
        split_tile<kRight, kDeep, true, kTruncate>(at, kTileHeight, kTileDepth, to, own);
      else
        split_tile<kRight, kDeep, false, kTruncate>(at, lanes - i, depth - k, to, own);
    }
  range = own;
}

// `lanes` rows of A (columns of B), `depth` deep.
template <bool kRight, bool kTruncate = false>
inline void split(const SplitSource& from, int64_t lanes, int64_t depth, BFloat16* to, SplitRange& range) {
  from.depth_step == 1 ? split_runs<kRight, true, kTruncate>(from, lanes, depth, to, range)
                       : split_runs<kRight, false, kTruncate>(from, lanes, depth, to, range);
}

// Tiles multiply while vectors compute: a loop of products calls what it is given whenever some of them have
// been issued. Nothing, where there is no such work.
struct NothingBeside {
  void operator()() const {}
};

// kRows x kColumns tiles of C: the product of a and b, added to C or to a row (null: zeros).
// `beside`: work of vectors, bit by bit.
template <int kRows, int kColumns, bool kAdd, class Beside = NothingBeside>
FASTDL_INLINE void split_block(const SplitPanels& a, const SplitPanels& b, int64_t depth, const float* row,
                               float* c, int64_t c_row, Beside&& beside = {}) {
  constexpr int64_t kBytes = 64;
  const BFloat16 *a_at = a.at, *b_at = b.at;
  if constexpr (kAdd) {
    load_tile<0>(c, c_row * 4);
    if constexpr (kColumns == 2) load_tile<1>(c + kTileHeight, c_row * 4);
    if constexpr (kRows == 2) load_tile<2>(c + kTileHeight * c_row, c_row * 4);
    if constexpr (kRows == 2 && kColumns == 2) load_tile<3>(c + kTileHeight * (c_row + 1), c_row * 4);
  } else {
    zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
  }
  if (!kAdd && row != nullptr) {  // the same one for every row of a tile
    load_tile<0>(row, 0), load_tile<2>(row, 0);
    if constexpr (kColumns == 2) load_tile<1>(row + kTileHeight, 0), load_tile<3>(row + kTileHeight, 0);
  }
  const auto left = [&](int64_t part) __attribute__((always_inline)) {
    load_tile<4>(a_at + part * kTileElements, kBytes);
    if constexpr (kRows == 2) load_tile<5>(a_at + a.panel + part * kTileElements, kBytes);
  };
  const auto right = [&](int64_t part) __attribute__((always_inline)) {
    load_tile<6>(b_at + part * kTileElements, kBytes);
    if constexpr (kColumns == 2) load_tile<7>(b_at + b.panel + part * kTileElements, kBytes);
  };
  const auto multiply = [&]() __attribute__((always_inline)) {
    dot_tiles<0, 4, 6>();
    if constexpr (kColumns == 2) dot_tiles<1, 4, 7>();
    if constexpr (kRows == 2) dot_tiles<2, 5, 6>();
    if constexpr (kRows == 2 && kColumns == 2) dot_tiles<3, 5, 7>();
    beside();
  };
  for (int64_t k = 0; k < depth;
       k += kTileDepth, a_at += kSplitParts * kTileElements, b_at += kSplitParts * kTileElements) {
    // In an order in which one side stays loaded.
    left(0), right(0), multiply();
    left(2), multiply();
    left(1), multiply();
    right(1), multiply();
    left(0), multiply();
    right(2), multiply();
  }
  store_tile<0>(c, c_row * 4);
  if constexpr (kColumns == 2) store_tile<1>(c + kTileHeight, c_row * 4);
  if constexpr (kRows == 2) store_tile<2>(c + kTileHeight * c_row, c_row * 4);
  if constexpr (kRows == 2 && kColumns == 2) store_tile<3>(c + kTileHeight * (c_row + 1), c_row * 4);
}

// C (+)= A B; either may be deeper. c: rows of c_row, which hold whole tiles.
template <bool kAdd, class Beside = NothingBeside>
__attribute__((noinline)) void multiply_split_tiles(int64_t rows, int64_t depth, int64_t columns,
                                                    const SplitPanels& a, const SplitPanels& b, float* c,
                                                    int64_t c_row, Beside&& beside = {}) {
  const int64_t row_tiles = tiles_of(rows, kTileHeight), column_tiles = tiles_of(columns, kTileHeight);
  for (int64_t j = 0; j < column_tiles; j += 2)
    for (int64_t i = 0; i < row_tiles; i += 2) {
      const SplitPanels left = {a.at + i * a.panel, a.panel}, right = {b.at + j * b.panel, b.panel};
      float* const block = c + (i * c_row + j) * kTileHeight;
      const bool tall = i + 1 < row_tiles, wide = j + 1 < column_tiles;
      if (tall)
        wide ? split_block<2, 2, kAdd>(left, right, depth, nullptr, block, c_row, beside)
             : split_block<2, 1, kAdd>(left, right, depth, nullptr, block, c_row, beside);
      else
        wide ? split_block<1, 2, kAdd>(left, right, depth, nullptr, block, c_row, beside)
             : split_block<1, 1, kAdd>(left, right, depth, nullptr, block, c_row, beside);
    }
}
#endif
