// Products of a single step's rows with a weight that is read where it lies, element by element: the rows
// stand side by side, [ceil(rows / kGemmWidth)][depth][kGemmWidth], so that vectors run across them. To pack
// the weight, as many steps do once, would take a single one as long as to multiply it. One thread each.
// Saves nothing.

// Rows of a single step from which this is faster than multiply_plain, and up to which than packing.
constexpr int64_t kFewestTurned = FASTDL_ISA >= FASTDL_ISA_AVX512 ? 12
                                  : FASTDL_ISA == FASTDL_ISA_AVX2 ? 25
                                                                  : 129;
constexpr int64_t kMostTurned = 256;

// Floats of x and the state, which every block of units has for itself.
constexpr int64_t kMostTurnedFloats = 512 * 1024;

template <class S>
bool turns(const RnnSequence& q) {
  const int64_t B = q.rows.B;
  return std::is_same_v<S, float> && !kByTiles<S> && q.rows.T == 1 && B >= kFewestTurned &&
         B <= kMostTurned && B * (q.I + q.R) <= kMostTurnedFloats;
}

// Products summed before they are added to others: the error of one long chain is larger than torch's.
constexpr int64_t kTurnedDepth = 128;

FASTDL_INLINE int64_t turned_floats(int64_t rows, int64_t depth) {
  return (rows + kGemmWidth - 1) / kGemmWidth * kGemmWidth * depth;
}

// kLanes rows, of which the first `rows` exist, -> the columns of a block [depth][kGemmWidth] from `out` on.
template <class T, class RowAt>
FASTDL_INLINE void turn_rows(const RowAt& row_at, int64_t rows, int64_t depth, float* out) {
  const T* from[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) from[i] = row_at(i < rows ? i : 0);
  for (int64_t k = 0; k < depth; k += kLanes) {
    const int depths = units_at(k, depth);
    Vec block[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) block[i] = load_units(from[i] + k, depths);
    transpose(block);
    for (int i = 0; i < depths; ++i) store(out + (k + i) * kGemmWidth, block[i]);
  }
}

// out[row, v * kLanes ..] of at most kGemmWidth rows and the vectors [first, first + count) of the product.
__attribute__((noinline)) void multiply_turned(const Weight& w, int64_t rows, const float* a, int64_t first,
                                               int64_t count, float* out, int64_t out_row) {
  alignas(64) float sums[kLanes * kGemmWidth];
  const GemmStrides strides = {w.depth, 1, kGemmWidth, kGemmWidth, kLanes};
  for (int64_t v = first; v < first + count; ++v, out += kLanes) {
    const int units = units_at(v / w.gates * kLanes, w.units);
    const float* const plain = plain_rows<float>(w, v);
    for (int64_t k = 0; k < w.depth; k += kTurnedDepth) {
      const int64_t depth = w.depth - k < kTurnedDepth ? w.depth - k : kTurnedDepth;
      gemm(k > 0, units, vectors_from(0, rows), plain + k, a + k * kGemmWidth, sums, depth, strides);
    }
    for (int64_t row = 0; row < rows; row += kLanes) {
      Vec block[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) block[i] = i < units ? load(sums + i * kGemmWidth + row) : zero();
      transpose(block);
      for (int64_t i = 0; i < kLanes && row + i < rows; ++i) store(out + (row + i) * out_row, block[i]);
    }
  }
}
