// The linear maps of Winograd F(4x4, 3x3) at the points 0, 1, -1, 2, -2, infinity, in one dimension. One
// vector of channels per call, on the calling thread. Saves nothing.

struct Tile4 {
  static constexpr int kTile = 4;                   // outputs of a tile, each way
  static constexpr int kSide = kTile + 2;           // inputs of a tile, each way
  static constexpr int kPositions = kSide * kSide;  // products of a tile

  // B^T d. Rows 1 and 2, then 3 and 4 share half their work.
  FASTDL_INLINE void input_line(const Vec (&d)[kSide], Vec (&out)[kSide]) {
    const Vec even = fma(set1(-4), d[2], d[4]), odd = fma(set1(-4), d[1], d[3]);
    const Vec even2 = d[4] - d[2], odd2 = d[3] - d[1];
    out[0] = fma(set1(4), d[0], fma(set1(-5), d[2], d[4]));
    out[1] = even + odd;
    out[2] = even - odd;
    out[3] = fma(set1(2), odd2, even2);
    out[4] = fma(set1(-2), odd2, even2);
    out[5] = fma(set1(4), d[1], fma(set1(-5), d[3], d[5]));
  }

  // A^T m
  FASTDL_INLINE void output_line(const Vec (&m)[kSide], Vec (&out)[kTile]) {
    const Vec sum = m[1] + m[2], difference = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
    out[0] = m[0] + sum + sum2;
    out[1] = fma(set1(2), difference2, difference);
    out[2] = fma(set1(4), sum2, sum);
    out[3] = fma(set1(8), difference2, difference) + m[5];
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
};
