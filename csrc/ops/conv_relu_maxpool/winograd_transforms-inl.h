// The linear maps of Winograd F(4x4, 3x3) at the points 0, 1, -1, 2, -2, infinity: Y = A^T [(G g G^T) . (B^T
// d B)] A. One tile and one vector of channels per call, on the calling thread. Saves nothing.

constexpr int kTile = 4;                   // outputs of a tile, each way
constexpr int kSide = kTile + 2;           // inputs of a tile, each way
constexpr int kPositions = kSide * kSide;  // products of a tile

// Rows 1 and 2, then 3 and 4 of B^T share half their work.
FASTDL_INLINE Vec input_first(Vec d0, Vec d2, Vec d4) { return fma(set1(4), d0, fma(set1(-5), d2, d4)); }
FASTDL_INLINE void input_middle(const Vec (&d)[4], Vec (&out)[4]) {
  const Vec even = fma(set1(-4), d[1], d[3]), odd = fma(set1(-4), d[0], d[2]);
  const Vec even_half = d[3] - d[1], odd_half = d[2] - d[0];
  out[0] = even + odd;
  out[1] = even - odd;
  out[2] = fma(set1(2), odd_half, even_half);
  out[3] = fma(set1(-2), odd_half, even_half);
}

// B^T row of six vectors, stored `stride` apart.
FASTDL_INLINE void store_input_row(const Vec (&d)[kSide], float* v, int64_t stride) {
  const Vec inner[4] = {d[1], d[2], d[3], d[4]};
  Vec middle[4];
  input_middle(inner, middle);
  store(v, input_first(d[0], d[2], d[4]));
  for (int j = 0; j < 4; ++j) store(v + (1 + j) * stride, middle[j]);
  store(v + 5 * stride, input_first(d[1], d[3], d[5]));
}

// v[6 i + j] = (B^T d B)[i][j]; d lies in rows of pixels, `row` and `pixel` floats apart, positions of v
// `stride` apart.
FASTDL_INLINE void input_transform(const float* d, int64_t row, int64_t pixel, float* v, int64_t stride) {
  Vec columns[4][kSide];
#pragma GCC unroll 6
  for (int j = 0; j < kSide; ++j) {
    const float* p = d + j * pixel;
    const Vec inner[4] = {load(p + row), load(p + 2 * row), load(p + 3 * row), load(p + 4 * row)};
    Vec middle[4];
    input_middle(inner, middle);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) columns[i][j] = middle[i];
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) store_input_row(columns[i], v + (1 + i) * kSide * stride, stride);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    Vec edge[kSide];
#pragma GCC unroll 6
    for (int j = 0; j < kSide; ++j) {
      const float* p = d + j * pixel + i * row;
      edge[j] = input_first(load(p), load(p + 2 * row), load(p + 4 * row));
    }
    store_input_row(edge, v + 5 * i * kSide * stride, stride);
  }
}

// A^T m
FASTDL_INLINE void output_line(const Vec (&m)[kSide], Vec (&out)[kTile]) {
  const Vec sum = m[1] + m[2], difference = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
  out[0] = m[0] + sum + sum2;
  out[1] = fma(set1(2), difference2, difference);
  out[2] = fma(set1(4), sum2, sum);
  out[3] = fma(set1(8), difference2, difference) + m[5];
}

// y = A^T m A, m[36][kLanes]
FASTDL_INLINE void output_transform(const float* m, Vec (&y)[kTile][kTile]) {
  Vec rows[kTile][kSide];
#pragma GCC unroll 6
  for (int j = 0; j < kSide; ++j) {
    Vec column[kSide], out[kTile];
#pragma GCC unroll 6
    for (int i = 0; i < kSide; ++i) column[i] = load(m + (i * kSide + j) * kLanes);
    output_line(column, out);
#pragma GCC unroll 4
    for (int i = 0; i < kTile; ++i) rows[i][j] = out[i];
  }
#pragma GCC unroll 4
  for (int i = 0; i < kTile; ++i) output_line(rows[i], y[i]);
}

// G g
FASTDL_INLINE void weight_line(Vec g0, Vec g1, Vec g2, Vec (&out)[kSide]) {
  const Vec even = set1(-1.f / 6) * (g0 + g2), odd = set1(-1.f / 6) * g1;
  const Vec even2 = fma(set1(1.f / 24), g0, set1(1.f / 6) * g2), odd2 = set1(1.f / 12) * g1;
  out[0] = set1(0.25f) * g0;
  out[1] = even + odd;
  out[2] = even - odd;
  out[3] = even2 + odd2;
  out[4] = even2 - odd2;
  out[5] = g2;
}

// u[6 i + j] = (G g G^T)[i][j], positions of u `stride` floats apart.
FASTDL_INLINE void weight_transform(const Vec (&g)[9], float* u, int64_t stride) {
  Vec columns[3][kSide];
  for (int j = 0; j < 3; ++j) weight_line(g[j], g[3 + j], g[6 + j], columns[j]);
  for (int i = 0; i < kSide; ++i) {
    Vec row[kSide];
    weight_line(columns[0][i], columns[1][i], columns[2][i], row);
    for (int j = 0; j < kSide; ++j) store(u + (i * kSide + j) * stride, row[j]);
  }
}
