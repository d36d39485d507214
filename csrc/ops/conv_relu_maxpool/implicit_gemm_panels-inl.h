// C[kPanelRows, kVecs * kLanes] (+)= a panel of rows times a panel of columns, both packed, and what follows
// a convolution: what every implicit GEMM of a convolution is made of. One thread. Saves nothing.
//
// A left panel holds kPanelRows rows, kLanes depths of a row in a run: packing copies, and a broadcast reads
// anywhere. A right panel is [depths][kGemmWidth].

constexpr int kPanelRows = 6;

// Depths of one running sum. A right panel of so many, and the left one, stay in L1.
constexpr int64_t kDepth = FASTDL_ISA >= FASTDL_ISA_AVX512 ? 128 : 256;

FASTDL_INLINE int64_t parts_of(int64_t n, int64_t part) { return (n + part - 1) / part; }

// What a finished sum goes through: of the tile's rows and, for the residual, of its first element.
struct TileFinish {
  const float *scale, *bias;
  const float* residual;  // or null
  float lowest, highest;  // what a value is limited to
};

// Of a tile without one.
constexpr float kOnes[kPanelRows] = {1, 1, 1, 1, 1, 1}, kZeros[kPanelRows] = {};

// Where a tile lies: rows `row` apart, of the residual too; `rows` of them and the first `last` lanes of its
// last vectors are there.
struct Tile {
  float* c;
  int64_t row, rows;
  int last;
  bool add;                  // to what is there
  const TileFinish* finish;  // or null
};

// The sums of a tile on their way to it, where what follows would spill the loop's own registers.
struct TileSums {
  alignas(64) float of[kPanelRows][kGemmWidth];
};

// kPut: to a whole tile, with what follows but a residual; else to `sums`.
template <int kVecs, bool kPut>
__attribute__((noinline)) void multiply_panels(const float* left, const float* right, int64_t depths,
                                               TileSums* sums, const Tile* tile) {
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
  if constexpr (kPut) {
    const TileFinish* f = tile->finish;
    const Vec lowest = set1(f->lowest), highest = set1(f->highest);
    const float *scale = f->scale, *bias = f->bias;
    float* to = tile->c;
    const int64_t row = tile->row;
#pragma GCC unroll 8
    for (int i = 0; i < kPanelRows; ++i, to += row) {
      const Vec scales = set1(scale[i]), biases = set1(bias[i]);
#pragma GCC unroll 8
      for (int j = 0; j < kVecs; ++j)
        store(to + j * kLanes, min(highest, max(lowest, sum[i][j] * scales + biases)));
    }
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < kPanelRows; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < kVecs; ++j) store(sums->of[i] + j * kLanes, sum[i][j]);
  }
}

// kWhole: every row and lane is there.
template <bool kWhole, bool kFinish, bool kResidual>
FASTDL_INLINE void put_tile(const TileSums& sums, int64_t vecs, const Tile& t) {
  const TileFinish f = kFinish ? *t.finish : TileFinish{};
  const Vec lowest = set1(f.lowest), highest = set1(f.highest);
  for (int64_t i = 0; i < (kWhole ? kPanelRows : t.rows); ++i) {
    const Vec scale = set1(kFinish ? f.scale[i] : 1);
    const Vec bias = set1(kFinish ? f.bias[i] : 0);
    for (int64_t j = 0; j < (kWhole ? kGemmVecs : vecs); ++j) {
      const int64_t at = i * t.row + j * kLanes;
      const int64_t there = kWhole || j < vecs - 1 ? kLanes : t.last;
      Vec v = load(sums.of[i] + j * kLanes);
      if (t.add) v = load_values(t.c + at, there) + v;
      if constexpr (kFinish) v = v * scale + bias;
      if constexpr (kResidual) v = v + load_values(f.residual + at, there);
      if constexpr (kFinish) v = min(highest, max(lowest, v));
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
  const bool whole = vecs == kGemmVecs && tile.rows == kPanelRows && tile.last == kLanes;
  if (whole && tile.finish != nullptr && !tile.add && residual == nullptr)
    return multiply_panels<kGemmVecs, true>(left, right, depths, nullptr, &tile);
  if (vecs == 1) multiply_panels<1, false>(left, right, depths, &sums, nullptr);
  if (vecs == 2) multiply_panels<2, false>(left, right, depths, &sums, nullptr);
  if constexpr (kGemmVecs == 4) {
    if (vecs == 3) multiply_panels<3, false>(left, right, depths, &sums, nullptr);
    if (vecs == 4) multiply_panels<4, false>(left, right, depths, &sums, nullptr);
  }
  whole ? put_tile<true>(sums, vecs, tile) : put_tile<false>(sums, vecs, tile);
}
