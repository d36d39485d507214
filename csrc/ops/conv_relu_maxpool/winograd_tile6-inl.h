// The linear maps of Winograd F(6x6, 3x3) at the points 0, 1, -1, 2, -2, 1/2, -1/2, infinity, in one
// dimension. One vector of channels per call, on the calling thread. Saves nothing.

struct Tile6 {
  static constexpr int kTile = 6;
  static constexpr int kSide = kTile + 2;
  static constexpr int kPositions = kSide * kSide;

  // B^T d. The rows of a point and of its negative share half their work.
  FASTDL_INLINE void input_line(const Vec (&d)[kSide], Vec (&out)[kSide]) {
    const Vec even = fma(set1(-4.25f), d[4], d[2] + d[6]), odd = fma(set1(-4.25f), d[3], d[1] + d[5]);
    const Vec even2 = fma(set1(0.25f), d[2], fma(set1(-1.25f), d[4], d[6])),
              odd2 = fma(set1(0.25f), d[1], fma(set1(-1.25f), d[3], d[5]));
    const Vec even_half = fma(set1(4), d[2], fma(set1(-5), d[4], d[6])),
              odd_half = fma(set1(4), d[1], fma(set1(-5), d[3], d[5]));
    out[0] = fma(set1(5.25f), d[4] - d[2], d[0] - d[6]);
    out[1] = even + odd;
    out[2] = even - odd;
    out[3] = fma(set1(2), odd2, even2);
    out[4] = fma(set1(-2), odd2, even2);
    out[5] = fma(set1(0.5f), odd_half, even_half);
    out[6] = fma(set1(-0.5f), odd_half, even_half);
    out[7] = fma(set1(5.25f), d[3] - d[5], d[7] - d[1]);
  }

  // A^T m, its columns of 2 and -2 over 32, G's rows times 32: entries above 1 would multiply the roundings
  // of products that are denormals.
  FASTDL_INLINE void output_line(const Vec (&m)[kSide], Vec (&out)[kTile]) {
    const Vec sum = m[1] + m[2], difference = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4],
              sum_half = m[5] + m[6], difference_half = m[5] - m[6];
    out[0] = fma(set1(1.f / 32), sum2, (m[0] + sum) + sum_half);
    out[1] = fma(set1(1.f / 16), difference2, fma(set1(1.f / 2), difference_half, difference));
    out[2] = fma(set1(1.f / 8), sum2, fma(set1(1.f / 4), sum_half, sum));
    out[3] = fma(set1(1.f / 4), difference2, fma(set1(1.f / 8), difference_half, difference));
    out[4] = fma(set1(1.f / 2), sum2, fma(set1(1.f / 16), sum_half, sum));
    out[5] = fma(set1(1.f / 32), difference_half, (m[7] + difference) + difference2);
  }

  // G g
  FASTDL_INLINE void weight_line(Vec g0, Vec g1, Vec g2, Vec (&out)[kSide]) {
    const Vec even = set1(-2.f / 9) * (g0 + g2), odd = set1(-2.f / 9) * g1;
    const Vec even2 = fma(set1(16.f / 45), g0, set1(64.f / 45) * g2), odd2 = set1(32.f / 45) * g1;
    const Vec even_half = fma(set1(32.f / 45), g0, set1(8.f / 45) * g2), odd_half = set1(16.f / 45) * g1;
    out[0] = g0;
    out[1] = even + odd;
    out[2] = even - odd;
    out[3] = even2 + odd2;
    out[4] = even2 - odd2;
    out[5] = even_half + odd_half;
    out[6] = even_half - odd_half;
    out[7] = g2;
  }
};
