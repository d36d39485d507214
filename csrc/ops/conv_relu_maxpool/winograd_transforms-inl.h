// The linear maps of a tile in two dimensions, from those in one: Y = A^T [(G g G^T) . (B^T d B)] A. Columns
// first, then rows; what lies between is in memory, so that a line at a time fits the registers. One tile and
// one vector of channels per call, on the calling thread. Saves nothing.

// v[kSide i + j] = (B^T d B)[i][j]; d lies in rows of pixels, `row` and `pixel` floats apart, positions of v
// `stride` apart.
template <class Tile>
FASTDL_INLINE void input_transform(const float* d, int64_t row, int64_t pixel, float* v, int64_t stride) {
  constexpr int kSide = Tile::kSide;
  alignas(64) float columns[Tile::kPositions * kLanes];
  Vec in[kSide], out[kSide];
#pragma GCC unroll 1
  for (int j = 0; j < kSide; ++j) {
#pragma GCC unroll 8
    for (int i = 0; i < kSide; ++i) in[i] = load(d + i * row + j * pixel);
    Tile::input_line(in, out);
#pragma GCC unroll 8
    for (int i = 0; i < kSide; ++i) store(columns + (i * kSide + j) * kLanes, out[i]);
  }
#pragma GCC unroll 1
  for (int i = 0; i < kSide; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kSide; ++j) in[j] = load(columns + (i * kSide + j) * kLanes);
    Tile::input_line(in, out);
#pragma GCC unroll 8
    for (int j = 0; j < kSide; ++j) store(v + (i * kSide + j) * stride, out[j]);
  }
}

// columns [kTile][kSide][kLanes] = A^T m, m [kSide][kSide][kLanes]
template <class Tile>
FASTDL_INLINE void output_columns(const float* m, float* columns) {
  constexpr int kSide = Tile::kSide;
#pragma GCC unroll 1
  for (int j = 0; j < kSide; ++j) {
    Vec in[kSide], out[Tile::kTile];
#pragma GCC unroll 8
    for (int i = 0; i < kSide; ++i) in[i] = load(m + (i * kSide + j) * kLanes);
    Tile::output_line(in, out);
#pragma GCC unroll 8
    for (int i = 0; i < Tile::kTile; ++i) store(columns + (i * kSide + j) * kLanes, out[i]);
  }
}

// A row of A^T m A from one of A^T m
template <class Tile>
FASTDL_INLINE void output_row(const float* columns, Vec (&y)[Tile::kTile]) {
  Vec in[Tile::kSide];
#pragma GCC unroll 8
  for (int j = 0; j < Tile::kSide; ++j) in[j] = load(columns + j * kLanes);
  Tile::output_line(in, y);
}

// u[kSide i + j] = (G g G^T)[i][j], positions of u `stride` floats apart.
template <class Tile>
void weight_transform(const Vec (&g)[9], float* u, int64_t stride) {
  constexpr int kSide = Tile::kSide;
  Vec columns[3][kSide];
  for (int j = 0; j < 3; ++j) Tile::weight_line(g[j], g[3 + j], g[6 + j], columns[j]);
  for (int i = 0; i < kSide; ++i) {
    Vec row[kSide];
    Tile::weight_line(columns[0][i], columns[1][i], columns[2][i], row);
    for (int j = 0; j < kSide; ++j) store(u + (i * kSide + j) * stride, row[j]);
  }
}
