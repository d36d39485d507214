// From products to outputs: Y = A^T M A, the maximum of each 2x2 window, bias, ReLU, record; stored in the
// caller's format. One vector of output channels of a group per call, on the calling thread. Saves the record
// byte of each window.

enum class Emission { kConvolution, kRelu, kPool, kPoolWithRecord };

// Outputs of a tile after the pool, each way.
constexpr int64_t emitted_side(Emission emission, int64_t tile) {
  return emission >= Emission::kPool ? tile / 2 : tile;
}

struct OutputTarget {
  void* data;              // [N, K, OH, OW], after the pool
  uint8_t* record;         // strides of data, or null
  const int64_t* strides;  // N, C, H, W; C or W has stride 1
  int64_t K, OH, OW;
  int64_t CH, CW;          // before the pool: windows are cut there
  const void* plain_bias;  // [K] in the dtype of data, or null
  // without a pool:
  const void* plain_scale = nullptr;          // [K] in the dtype of data, or null
  const void* residual = nullptr;             // strides of data, added as it is stored, or null
  Activation activation = Activation::kNone;  // after the residual; a ReLU without one is the emission's

  const float* bias = nullptr;   // [round_up(K, kLanes)], zeros where there is none
  const float* scale = nullptr;  // [round_up(K, kLanes)], ones where there is none
};

// A tile whose products are not finite, summed directly: NaN and infinity go where the convolution takes
// them.
struct DirectTile {
  const PlainWeight& weight;
  const WinogradShape& shape;
  void (*run)(const DirectTile& self, const float* pixels, const StagedSize& size, int64_t y, int64_t x,
              int64_t k, int64_t tile, float* out);
};

// out [tile][tile][kLanes]
template <class T>
__attribute__((cold)) void direct_tile(const DirectTile& self, const float* pixels, const StagedSize& size,
                                       int64_t y, int64_t x, int64_t k, int64_t tile, float* out) {
  zero_floats(out, tile * tile * kLanes);
  for (int64_t c = 0; c < self.shape.C; ++c) {
    Vec g[9];
    load_taps<T>(self.weight, k, c, g);
    for (int64_t r = 0; r < tile + 2; ++r)
      for (int64_t s = 0; s < tile + 2; ++s) {
        const int64_t row = y + r - self.shape.padding[0], col = x + s - self.shape.padding[1];
        if (row < 0 || row >= self.shape.H || col < 0 || col >= self.shape.W) continue;
        const Vec d = set1(pixels[r * size.row() + s * size.channels + c]);
        for (int i = 0; i < 3; ++i)
          for (int j = 0; j < 3; ++j) {
            const int64_t a = r - i, b = s - j;
            if (a < 0 || a >= tile || b < 0 || b >= tile) continue;
            float* sum = out + (a * tile + b) * kLanes;
            store(sum, fma(g[3 * i + j], d, load(sum)));
          }
      }
  }
}

// The first maximum of a window, and its position; a later NaN replaces all.
template <bool kNan>
FASTDL_INLINE void take(Vec candidate, int position, Vec& best, VecInt& at) {
  VecInt better = candidate > best;
  if constexpr (kNan) better |= candidate != candidate;
  best = select(better, candidate, best);
  at = better ? (VecInt{} + position) : at;
}

// Two rows of a tile, as many as a window has.
template <Emission kEmission, bool kNan, int kTile>
FASTDL_INLINE void emit_rows(const Vec (&y)[2][kTile], Vec scale, Vec bias, float* out, float* record,
                             int64_t row) {
  if constexpr (kEmission == Emission::kConvolution || kEmission == Emission::kRelu) {
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < kTile; ++j) {
        const Vec sum = fma(y[i][j], scale, bias);
        store(out + i * row + j * kLanes, kEmission == Emission::kRelu ? relu(sum) : sum);
      }
  } else {
    for (int j = 0; j < kTile / 2; ++j) {
      const Vec a = y[0][2 * j], b = y[0][2 * j + 1], c = y[1][2 * j], d = y[1][2 * j + 1];
      Vec best;
      VecInt at = VecInt{};
      if constexpr (kEmission == Emission::kPoolWithRecord || kNan) {
        best = a;
        take<kNan>(b, 1, best, at);
        take<kNan>(c, 2, best, at);
        take<kNan>(d, 3, best, at);
      } else {
        best = max(max(a, b), max(c, d));
      }
      best += bias;
      store(out + j * kLanes, relu(best));
      if constexpr (kEmission == Emission::kPoolWithRecord) {
        const VecInt closed = best <= zero();
        const VecInt position = closed ? (VecInt{} + kReluClosed) : at;
        store(record + j * kLanes, reinterpret_cast<Vec>(position));
      }
    }
  }
}

// Convolution outputs past (CH, CW) must lose against those inside.
template <int kTile>
FASTDL_INLINE void cut_windows(Vec (&y)[2][kTile], int64_t rows, int64_t cols) {
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < kTile; ++j)
      if (i >= rows || j >= cols) y[i][j] = set1(-__builtin_inff());
}

// A tile that is not finite. A function of its own: the others stay in registers.
template <class Tile, Emission kEmission>
__attribute__((noinline, cold)) void emit_directly(const DirectTile& direct, const float* pixels,
                                                   const StagedSize& size, int64_t y0, int64_t x0, int64_t k,
                                                   const OutputTarget& target, float* out, float* record,
                                                   int64_t row) {
  constexpr int kTile = Tile::kTile;
  constexpr int64_t kEmitted = emitted_side(kEmission, kTile);
  alignas(64) float sums[kTile * kTile * kLanes];
  direct.run(direct, pixels, size, y0, x0, k, kTile, sums);
  for (int i = 0; i < kTile; i += 2) {
    Vec y[2][kTile];
    for (int j = 0; j < 2 * kTile; ++j) y[j / kTile][j % kTile] = load(sums + (i * kTile + j) * kLanes);
    if (kEmission >= Emission::kPool) cut_windows(y, target.CH - y0 - i, target.CW - x0);
    const int64_t at = i * kEmitted / kTile * row;
    emit_rows<kEmission, true>(y, load(target.scale + k), load(target.bias + k), out + at, record + at, row);
  }
}

// out, record [images][side rows][side cols][kLanes] from m [tiles][positions][kLanes]
template <class Tile, Emission kEmission>
void emit_group(const float* m, const float* staged, const WinogradGroup& group, const OutputTarget& target,
                const DirectTile& direct, int64_t k, float* out, float* record) {
  constexpr int kTile = Tile::kTile, kSide = Tile::kSide;
  constexpr int64_t kEmitted = emitted_side(kEmission, kTile);
  const StagedSize size = staged_size(group, direct.shape.C, 2);
  const Vec bias = load(target.bias + k), scale = load(target.scale + k);
  const int64_t row = kEmitted * group.cols * kLanes;
  alignas(64) float columns[kTile * kSide * kLanes];
  for (int64_t n = 0; n < group.images; ++n)
    for (int64_t ty = 0; ty < group.rows; ++ty)
      for (int64_t tx = 0; tx < group.cols; ++tx) {
        const int64_t y0 = kTile * (group.y + ty), x0 = kTile * (group.x + tx);
        const int64_t begin = ((n * group.rows + ty) * kEmitted) * row + tx * kEmitted * kLanes;
        const bool cut = kEmission >= Emission::kPool && (y0 + kTile > target.CH || x0 + kTile > target.CW);
        output_columns<Tile>(m, columns);
        m += tile_stride(Tile::kPositions);
        Vec sum = zero();
#pragma GCC unroll 1
        for (int i = 0; i < kTile; i += 2) {
          Vec y[2][kTile];
          output_row<Tile>(columns + i * kSide * kLanes, y[0]);
          output_row<Tile>(columns + (i + 1) * kSide * kLanes, y[1]);
          for (int j = 0; j < kTile; ++j) sum += y[0][j] + y[1][j];
          if (cut) cut_windows(y, target.CH - y0 - i, target.CW - x0);
          const int64_t at = begin + i * kEmitted / kTile * row;
          emit_rows<kEmission, false>(y, scale, bias, out + at, record + at, row);
        }
        if (__builtin_expect(is_finite(sum), 1)) continue;
        const float* pixels = staged + n * size.image() + kTile * (ty * size.row() + tx * size.channels);
        emit_directly<Tile, kEmission>(direct, pixels, size, y0, x0, k, target, out + begin, record + begin,
                                       row);
      }
}

using EmitGroup = void (*)(const float* m, const float* staged, const WinogradGroup& group,
                           const OutputTarget& target, const DirectTile& direct, int64_t k, float* out,
                           float* record);
