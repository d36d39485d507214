// C[kPanelRows, kVecs * kLanes] (+)= a panel of rows times a panel of columns, both packed, and what follows
// a convolution: what every implicit GEMM of a convolution is made of. One thread. Saves nothing.
//
// A left panel holds kPanelRows rows, kLanes depths of a row in a run: packing copies, and a broadcast reads
// anywhere. A right panel is [depths][kGemmWidth].

constexpr int kPanelRows = 6;

// Depths of one running sum. A right panel of so many, and the left one, stay in L1.
constexpr int64_t kDepth = FASTDL_ISA >= FASTDL_ISA_AVX512 ? 128 : 256;

FASTDL_INLINE int64_t parts_of(int64_t n, int64_t part) { return (n + part - 1) / part; }

// The first n elements, 0 beyond; n may be anything.
template <class T>
FASTDL_INLINE Vec load_some(const T* p, int64_t n) {
  return n >= kLanes ? load(p) : n > 0 ? load_first(p, static_cast<int>(n)) : zero();
}

// What a finished sum goes through: of the tile's rows and, for the residual, of its first element.
struct TileFinish {
  const float *scale, *bias, *residual;  // or null
  Activation activation;                 // a ReLU is a tile's, others a panel's
};

// Where a tile lies: rows `row` apart, of the residual too; `rows` of them and the first `last` lanes of its
// last vectors are there.
struct Tile {
  float* c;
  int64_t row, rows;
  int last;
  bool add;                  // to what is there
  const TileFinish* finish;  // or null
};

// The sums of a tile on their way to it: held in registers to the end, the loop's own would be spilled.
struct TileSums {
  alignas(64) float of[kPanelRows][kGemmWidth];
};

template <int kVecs>
__attribute__((noinline)) void multiply_panels(const float* left, const float* right, int64_t depths,
                                               TileSums* sums) {
  Vec sum[kPanelRows][kVecs];
#pragma GCC unroll 8
  for (int i = 0; i < kPanelRows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) sum[i][j] = zero();
  const auto step = [&](const float* a, const float* b) __attribute__((always_inline)) {
    Vec across[kVecs];
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) across[j] = load(b + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kPanelRows; ++i) {
      const Vec down = set1(a[i * kLanes]);
#pragma GCC unroll 8
      for (int j = 0; j < kVecs; ++j) accumulate(sum[i][j], down, across[j]);
    }
  };
#pragma GCC unroll 1
  for (; depths >= kLanes; depths -= kLanes) {
#pragma GCC unroll 16
    for (int s = 0; s < kLanes; ++s) step(left + s, right + s * kGemmWidth);
    left += kPanelRows * kLanes, right += kLanes * kGemmWidth;
  }
#pragma GCC unroll 1
  for (; depths > 0; --depths, ++left, right += kGemmWidth) step(left, right);
#pragma GCC unroll 8
  for (int i = 0; i < kPanelRows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) store(sums->of[i] + j * kLanes, sum[i][j]);
}

// kWhole: every row and lane is there.
template <bool kWhole, bool kFinish, bool kResidual>
FASTDL_INLINE void put_tile(const TileSums& sums, int64_t vecs, const Tile& t) {
  const TileFinish f = kFinish ? *t.finish : TileFinish{};
  const bool relu = f.activation == Activation::kRelu;
  for (int64_t i = 0; i < (kWhole ? kPanelRows : t.rows); ++i) {
    const Vec scale = set1(kFinish && f.scale != nullptr ? f.scale[i] : 1);
    const Vec bias = set1(kFinish && f.bias != nullptr ? f.bias[i] : 0);
    for (int64_t j = 0; j < (kWhole ? kGemmVecs : vecs); ++j) {
      const int64_t at = i * t.row + j * kLanes;
      const int64_t there = kWhole || j < vecs - 1 ? kLanes : t.last;
      Vec v = load(sums.of[i] + j * kLanes);
      if (t.add) v = load_values(t.c + at, there) + v;
      if constexpr (kFinish) v = v * scale + bias;
      if constexpr (kResidual) v = v + load_values(f.residual + at, there);
      if (relu) v = closed_where_negative<true, float>(v);
      store_values(t.c + at, v, there);
    }
  }
}

template <bool kWhole>
inline void put_tile(const TileSums& sums, int64_t vecs, const Tile& t) {
  if (t.finish == nullptr) return put_tile<kWhole, false, false>(sums, vecs, t);
  if (t.finish->residual == nullptr) return put_tile<kWhole, true, false>(sums, vecs, t);
  put_tile<kWhole, true, true>(sums, vecs, t);
}

// The tile of a panel of 1 <= vecs <= kGemmVecs vectors.
inline void multiply_tile(int64_t vecs, const float* left, const float* right, int64_t depths,
                          const Tile& tile) {
  TileSums sums;
  const float* residual = tile.finish == nullptr ? nullptr : tile.finish->residual;
  for (int64_t i = 0; i < tile.rows; ++i) {
    __builtin_prefetch(tile.c + i * tile.row, 1);
    if (residual != nullptr) __builtin_prefetch(residual + i * tile.row);
  }
  if (vecs == 1) multiply_panels<1>(left, right, depths, &sums);
  if (vecs == 2) multiply_panels<2>(left, right, depths, &sums);
  if constexpr (kGemmVecs == 4) {
    if (vecs == 3) multiply_panels<3>(left, right, depths, &sums);
    if (vecs == 4) multiply_panels<4>(left, right, depths, &sums);
  }
  const bool whole = vecs == kGemmVecs && tile.rows == kPanelRows && tile.last == kLanes;
  whole ? put_tile<true>(sums, vecs, tile) : put_tile<false>(sums, vecs, tile);
}
