// Operands of the small products: rows of q, k, v widened to fp32 in scratch, padded with zeros to whole
// vectors. One thread. Saves nothing. Included by foreach_isa.h: no include guard.

constexpr int64_t kBlockM = 48;  // rows of a score tile: whole register blocks of gemm
// Keys of a score tile, and floats between its rows: 48 x 128 and a panel of k stay in 32 KB. Products
// by tiles take fewer rows, and more keys, in rows that fall into different sets of the cache.
#if FASTDL_TILES
constexpr int64_t kBlockN = 256, kScoresRow = kBlockN + 16;
#else
constexpr int64_t kBlockN = 128, kScoresRow = kBlockN;
#endif
constexpr int64_t kChunk = 384;  // query rows that share one packing of a block of keys

FASTDL_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Row stride of n columns: whole vectors, an odd number of cache lines, so that a column of rows spreads over
// all sets of the cache.
FASTDL_INLINE int64_t padded_stride(int64_t n) {
  return round_up(n > 0 ? n : 1, 16) + (round_up(n, 16) % 32 == 0 ? 16 : 0);
}

// rows x width elements -> to[row * padded_stride(width) + column], columns beyond width 0.
template <class T>
static void widen_rows(const T* from, int64_t row_stride, int64_t rows, int64_t width, float* to) {
  const int64_t stride = padded_stride(width);
  for (int64_t row = 0; row < rows; ++row) {
    const T* source = from + row * row_stride;
    float* target = to + row * stride;
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) store(target + i, load(source + i));
    if (i < width) {
      store(target + i, load_first(source + i, static_cast<int>(width - i)));
      i += kLanes;
    }
    for (; i < stride; i += kLanes) store(target + i, zero());
  }
}

// Rows of floats where a product finds them, as many floats apart.
struct RowsAt {
  const float* at;
  int64_t stride;
};

// rows x width elements as floats: where they lie, if they are floats close together or few, or widened to
// `to`. As a right operand they are read in whole vectors.
template <class T>
static RowsAt rows_in_place(const T* from, int64_t row_stride, int64_t rows, int64_t width, bool right,
                            float* to) {
  if constexpr (std::is_same<T, float>::value) {
    // Rows of whole pages would meet in one set of the cache.
    const bool spread = row_stride == width || (rows <= 2 * kLanes && row_stride % 1024 != 0);
    if (spread && (!right || width % kLanes == 0)) return {from, row_stride};
  }
  widen_rows(from, row_stride, rows, width, to);
  return {to, padded_stride(width)};
}

// rows x depth elements -> panels of kGemmWidth rows, [panel][depth][kGemmWidth]: the right side of a product
// with the transpose. Rows beyond the last are 0, up to a whole vector.
template <class T>
static void pack_transposed(const T* from, int64_t row_stride, int64_t rows, int64_t depth, float* to) {
  for (int64_t first = 0; first < rows; first += kLanes) {
    float* panel = to + first / kGemmWidth * depth * kGemmWidth + first % kGemmWidth;
    const int64_t count = rows - first < kLanes ? rows - first : kLanes;
    for (int64_t d = 0; d < depth; d += kLanes) {
      const int width = static_cast<int>(depth - d < kLanes ? depth - d : kLanes);
      Vec block[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const T* source = from + (first + i) * row_stride + d;
        block[i] = i >= count ? zero() : width == kLanes ? load(source) : load_first(source, width);
      }
      transpose(block);
      for (int i = 0; i < width; ++i) store(panel + (d + i) * kGemmWidth, block[i]);
    }
  }
}

// c[rows, keys] = a[rows, depth] * packed^T, keys rounded up to whole vectors.
FASTDL_INLINE void multiply_transposed(const RowsAt& a, int64_t rows, const float* packed, int64_t keys,
                                       int64_t depth, float* c, int64_t c_stride) {
  const GemmStrides s = {a.stride, 1, kGemmWidth, c_stride, kLanes};
  for (int64_t first = 0; first < keys; first += kGemmWidth)
    gemm(false, rows, vectors_from(first, keys), a.at, packed + first * depth, c + first, depth, s);
}

// c[rows, width] = a[rows, depth] b[depth, width], or added to; c: rows of padded_stride(width).
FASTDL_INLINE void multiply(bool add, const float* a, int64_t a_row, int64_t a_depth, int64_t rows,
                            const RowsAt& b, int64_t depth, int64_t width, float* c) {
  const GemmStrides s = {a_row, a_depth, b.stride, padded_stride(width), kLanes};
  for (int64_t first = 0; first < width; first += kGemmWidth)
    gemm(add, rows, vectors_from(first, width), a, b.at + first, c + first, depth, s);
}

// Lanes i and i ^ kStep change places.
template <int kStep>
FASTDL_INLINE Vec exchanged(Vec v) {
  return shuffle(v, v, [](int lane) { return lane ^ kStep; });
}
template <int kStep = kLanes / 2>
FASTDL_INLINE float sum_of(Vec v) {
  if constexpr (kStep > 0) return sum_of<kStep / 2>(v + exchanged<kStep>(v));
  return v[0];
}
template <int kStep = kLanes / 2>
FASTDL_INLINE float max_of(Vec v) {
  if constexpr (kStep > 0) return max_of<kStep / 2>(max(exchanged<kStep>(v), v));
  return v[0];
}
