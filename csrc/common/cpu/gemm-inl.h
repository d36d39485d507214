// Register-blocked products of small fp32 matrices: C[rows, kVecs * kLanes] (+)= A[rows, depth] B[depth,
// kVecs * kLanes]. One thread. A is read element by element and broadcast, so its two strides are free; B is
// read in whole vectors, of any type a Vec is loaded from. Saves nothing. Included after vec-inl.h, once per
// instruction set: no include guard.

// Vectors across C held at once. 6 rows x 4 vectors fill 24 of 32 registers, 6 x 2 fill 12 of 16.
constexpr int kGemmVecs = kRegisters / 8;
constexpr int kGemmWidth = kGemmVecs * kLanes;

template <int kVecs>
constexpr int gemm_rows() {
  return kVecs == 3 ? 8 : 6 * kGemmVecs / kVecs < 14 ? 6 * kGemmVecs / kVecs : 14;
}

// How A, B and C lie in memory, in elements.
struct GemmStrides {
  int64_t a_row, a_depth;
  int64_t b_depth;
  int64_t c_row, c_vec;
};

template <int kRows, int kVecs, class B>
FASTDL_INLINE void gemm_block(bool add, const float* a, const B* b, float* c, int64_t depth,
                              const GemmStrides& s) {
  Vec sum[kRows][kVecs];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) sum[i][j] = zero();
  const int64_t a_row = s.a_row, a_depth = s.a_depth, b_depth = s.b_depth;
#pragma GCC unroll 1
  for (int64_t k = 0; k < depth; ++k) {
    Vec right[kVecs];
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) right[j] = load(b + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Vec left = set1(a[i * a_row]);
#pragma GCC unroll 8
      for (int j = 0; j < kVecs; ++j) sum[i][j] = fma(left, right[j], sum[i][j]);
    }
    a += a_depth;
    b += b_depth;
  }
  if (add) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < kVecs; ++j) sum[i][j] = load(c + i * s.c_row + j * s.c_vec) + sum[i][j];
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) store(c + i * s.c_row + j * s.c_vec, sum[i][j]);
}

// One block of `rows` rows, 1 <= rows <= kRows.
template <int kRows, int kVecs, class B>
FASTDL_INLINE void gemm_block_of(bool add, int64_t rows, const float* a, const B* b, float* c, int64_t depth,
                                 const GemmStrides& s) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return gemm_block_of<kRows - 1, kVecs>(add, rows, a, b, c, depth, s);
  }
  gemm_block<kRows, kVecs>(add, a, b, c, depth, s);
}

// Any number of rows, in blocks as even as can be: 13 rows run as 5 + 4 + 4, not as 6 + 6 + 1.
template <int kVecs, class B>
__attribute__((noinline)) void gemm_rows_by(bool add, int64_t rows, const float* a, const B* b, float* c,
                                            int64_t depth, const GemmStrides& s) {
  constexpr int kRows = gemm_rows<kVecs>();
  for (int64_t blocks = (rows + kRows - 1) / kRows; blocks > 0; --blocks) {
    const int64_t block = (rows + blocks - 1) / blocks;
    gemm_block_of<kRows, kVecs>(add, block, a, b, c, depth, s);
    a += block * s.a_row;
    c += block * s.c_row;
    rows -= block;
  }
}

// Vectors of the panel or block that begins at `first` of `width` columns.
FASTDL_INLINE int64_t vectors_from(int64_t first, int64_t width) {
  const int64_t left = (width - first + kLanes - 1) / kLanes;
  return left < kGemmVecs ? left : kGemmVecs;
}

// C[rows, vecs * kLanes] (+)= A B with 1 <= vecs <= kGemmVecs.
template <class B>
FASTDL_INLINE void gemm(bool add, int64_t rows, int64_t vecs, const float* a, const B* b, float* c,
                        int64_t depth, const GemmStrides& s) {
  if (vecs == 1) return gemm_rows_by<1>(add, rows, a, b, c, depth, s);
  if (vecs == 2) return gemm_rows_by<2>(add, rows, a, b, c, depth, s);
  if constexpr (kGemmVecs == 4) {
    if (vecs == 3) return gemm_rows_by<3>(add, rows, a, b, c, depth, s);
    return gemm_rows_by<4>(add, rows, a, b, c, depth, s);
  }
}
