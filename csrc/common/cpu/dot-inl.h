// Products x w^T of matrices whose rows are both contiguous along the sum: vectors run along it and are added
// up at the end, so that neither operand is packed. One thread. Saves nothing. Included after vec-inl.h, once
// per instruction set: no include guard.

// How one vector of T takes part: kElements of it are one Operand, dot(a, b, sum) adds their products lane by
// lane.
template <class T>
struct Dot {
  static constexpr int kElements = kLanes;
  typedef Vec Operand;
  FASTDL_INLINE Operand get(const T* p) { return load(p); }
  FASTDL_INLINE Operand get_first(const T* p, int n) { return load_first(p, n); }
  FASTDL_INLINE Vec dot(Operand a, Operand b, Vec sum) { return fma(a, b, sum); }
};

// Pairs of bfloat16 in 32-bit lanes, as AVX512-BF16 multiplies them.
template <>
struct Dot<BFloat16> {
  static constexpr int kElements = 2 * kLanes;
  typedef VecBits Operand;
  FASTDL_INLINE Operand get(const BFloat16* p) {
    VecBits pairs;
    std::memcpy(&pairs, p, sizeof(pairs));
    return pairs;
  }
  FASTDL_INLINE Operand get_first(const BFloat16* p, int n) {
    VecBits pairs = {};
    std::memcpy(&pairs, p, static_cast<size_t>(n) * 2);
    return pairs;
  }
  FASTDL_INLINE Vec dot(Operand a, Operand b, Vec sum) {
#if FASTDL_ISA >= FASTDL_ISA_AVX512BF16
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
#else
    sum = fma(reinterpret_cast<Vec>(a << 16), reinterpret_cast<Vec>(b << 16), sum);
    return fma(reinterpret_cast<Vec>(a & 0xffff0000), reinterpret_cast<Vec>(b & 0xffff0000), sum);
#endif
  }
};

// Rows of x and rows of w held at once: 12 sums in 16 registers, 24 in 32.
constexpr int kDotRows = kRegisters == 32 ? 6 : 3;
constexpr int kDotColumns = 4;

// In each 128-bit part: a0 + a1, a2 + a3, b0 + b1, b2 + b3.
FASTDL_INLINE Vec pairwise_sums(Vec a, Vec b) {
  const auto even = [](int lane) { return lane / 4 * 4 + lane % 2 * 2 + lane / 2 % 2 * kLanes; };
  const auto odd = [](int lane) { return lane / 4 * 4 + lane % 2 * 2 + lane / 2 % 2 * kLanes + 1; };
  return shuffle(a, b, even) + shuffle(a, b, odd);
}

// out[j] (+)= the sum of all lanes of v[j].
FASTDL_INLINE void sum_of_lanes(const Vec (&v)[kDotColumns], bool add, float* out) {
  typedef float Vec4 __attribute__((vector_size(16)));
  const Vec quarters = pairwise_sums(pairwise_sums(v[0], v[1]), pairwise_sums(v[2], v[3]));
  Vec4 part[kLanes / 4], sum;
  std::memcpy(part, &quarters, sizeof(quarters));
  sum = part[0];
  for (int i = 1; i < kLanes / 4; ++i) sum += part[i];
  if (add) {
    Vec4 before;
    std::memcpy(&before, out, 16);
    sum = before + sum;
  }
  std::memcpy(out, &sum, 16);
}

// c[i][j] (+)= x_i . w_j over `depth` elements, for kRows rows of x and the four rows w[j].
template <int kRows, class T>
FASTDL_INLINE void dot_tile(const T* x, int64_t x_row, const T* const (&w)[kDotColumns], int64_t depth,
                            bool add, float* c, int64_t c_row) {
  constexpr int kElements = Dot<T>::kElements;
  Vec sum[kRows][kDotColumns];
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kDotColumns; ++j) sum[i][j] = zero();
  int64_t k = 0;
#pragma GCC unroll 1
  for (; k + kElements <= depth; k += kElements) {
    typename Dot<T>::Operand left[kRows];
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) left[i] = Dot<T>::get(x + i * x_row + k);
#pragma GCC unroll 4
    for (int j = 0; j < kDotColumns; ++j) {
      const typename Dot<T>::Operand right = Dot<T>::get(w[j] + k);
#pragma GCC unroll 6
      for (int i = 0; i < kRows; ++i) sum[i][j] = Dot<T>::dot(left[i], right, sum[i][j]);
    }
  }
  if (k < depth) {
    const int n = static_cast<int>(depth - k);
#pragma GCC unroll 4
    for (int j = 0; j < kDotColumns; ++j) {
      const typename Dot<T>::Operand right = Dot<T>::get_first(w[j] + k, n);
#pragma GCC unroll 6
      for (int i = 0; i < kRows; ++i)
        sum[i][j] = Dot<T>::dot(Dot<T>::get_first(x + i * x_row + k, n), right, sum[i][j]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) sum_of_lanes(sum[i], add, c + i * c_row);
}

template <int kRows, class T>
FASTDL_INLINE void dot_tile_of(int64_t rows, const T* x, int64_t x_row, const T* const (&w)[kDotColumns],
                               int64_t depth, bool add, float* c, int64_t c_row) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return dot_tile_of<kRows - 1>(rows, x, x_row, w, depth, add, c, c_row);
  }
  dot_tile<kRows>(x, x_row, w, depth, add, c, c_row);
}

// c[rows][columns rounded up to 4] (+)= x w^T: x [rows][x_row ...], w [columns][w_row ...], sums over
// `depth`.
template <class T>
__attribute__((noinline)) void dot_product(bool add, int64_t rows, int64_t columns, const T* x, int64_t x_row,
                                           const T* w, int64_t w_row, int64_t depth, float* c,
                                           int64_t c_row) {
  for (int64_t j = 0; j < columns; j += kDotColumns) {
    const T* four[kDotColumns];
    // Past the last row of w, the last again: computed, never used.
    for (int64_t v = 0; v < kDotColumns; ++v) four[v] = w + (j + v < columns ? j + v : columns - 1) * w_row;
    for (int64_t i = 0; i < rows;) {
      // 4 rows left run as 2 + 2, not as 3 + 1.
      const int64_t left = rows - i, blocks = (left + kDotRows - 1) / kDotRows,
                    block = (left + blocks - 1) / blocks;
      dot_tile_of<kDotRows>(block, x + i * x_row, x_row, four, depth, add, c + i * c_row + j, c_row);
      i += block;
    }
  }
}
