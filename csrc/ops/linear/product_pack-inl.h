// Operands of the product as its inner loop reads them: each in one stream of consecutive memory. One thread.
// Saves nothing. Included after vec-inl.h and gemm-inl.h, once per instruction set: no include guard.

// Rows of a panel of A: with kGemmVecs vectors of columns they fill the registers.
constexpr int kPanelRows = 6;

// A panel of B, kDepth x kGemmWidth, stays in L1; a block of A, kBlockRows x kDepth, in L2.
constexpr int64_t kDepth = FASTDL_ISA >= FASTDL_ISA_AVX512 ? 128 : 256;
constexpr int64_t kBlockRows = 24 * kPanelRows;

// Panels of A are written in whole vectors, which reach beyond them.
constexpr int kPanelVecs = (kPanelRows + kLanes - 1) / kLanes;
constexpr int64_t kLeftPanel = kPanelRows * kDepth + 16;

FASTDL_INLINE int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

// A[row .. + rows, depth .. + depths], rows of it in a run, as panels [depths][kPanelRows], kLeftPanel apart.
inline void pack_left_by_depth(const float* from, int64_t left_depth, int64_t rows, int64_t depths,
                               float* out) {
  // Each run lies in a page of its own, where no hardware looks ahead.
  constexpr int64_t kAhead = 16, kLine = 16;
  for (int64_t k = 0; k < depths; ++k, from += left_depth, out += kPanelRows) {
    for (int64_t i = 0; i < rows; i += kLine) __builtin_prefetch(from + kAhead * left_depth + i);
    float* to = out;
    for (int64_t i = 0; i < rows; i += kPanelRows, to += kLeftPanel)
      for (int v = 0; v < kPanelVecs; ++v)
        store(to + v * kLanes, load_some(from + i + v * kLanes, rows - i - v * kLanes));
  }
}

// The same where depths lie in a run.
inline void pack_left_by_rows(const float* from, int64_t left_row, int64_t rows, int64_t depths, float* out) {
  for (int64_t row = 0; row < rows; row += kPanelRows, out += kLeftPanel)
    for (int64_t k = 0; k < depths; k += kLanes) {
      const int64_t some = lesser(depths - k, kLanes);
      Vec block[kPanelVecs][kLanes];
#pragma GCC unroll 2
      for (int v = 0; v < kPanelVecs; ++v) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          const int64_t at = row + v * kLanes + i;
          const bool there = v * kLanes + i < kPanelRows && at < rows;
          block[v][i] = there ? load_some(from + at * left_row + k, some) : zero();
        }
        transpose(block[v]);
      }
      for (int i = 0; i < some; ++i)
        for (int v = 0; v < kPanelVecs; ++v) store(out + (k + i) * kPanelRows + v * kLanes, block[v][i]);
    }
}

inline void pack_left(const LinearProduct& p, int64_t row, int64_t rows, int64_t depth, int64_t depths,
                      float* out) {
  const float* const from = p.left + row * p.left_row + depth * p.left_depth;
  if (p.left_depth == 1) return pack_left_by_rows(from, p.left_row, rows, depths, out);
  pack_left_by_depth(from, p.left_depth, rows, depths, out);
}

// B[depth .. + depths, column .. + columns] as panels [depths][kGemmWidth], of the last one the vectors that
// there are, filled up with zeros.
inline void pack_right(const LinearProduct& p, int64_t column, int64_t columns, int64_t depth, int64_t depths,
                       float* out) {
  const float* const from = p.right + column * p.right_column + depth * p.right_depth;
  const int64_t vectors = (columns + kLanes - 1) / kLanes;
  // A few rows of B at a time: each lies in pages of its own.
  constexpr int64_t kSome = kLanes;
  for (int64_t k = 0; k < depths; k += kSome) {
    const int64_t some = lesser(depths - k, kSome);
    for (int64_t v = 0; v < vectors; ++v) {
      float* const to = out + (v / kGemmVecs * depths + k) * kGemmWidth + v % kGemmVecs * kLanes;
      const int64_t n = columns - v * kLanes;
      const float* const at = from + v * kLanes * p.right_column + k * p.right_depth;
      if (p.right_column == 1) {
        for (int64_t i = 0; i < some; ++i) store(to + i * kGemmWidth, load_some(at + i * p.right_depth, n));
        continue;
      }
      Vec rows[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) rows[i] = i < n ? load_some(at + i * p.right_column, some) : zero();
      transpose(rows);
      for (int i = 0; i < some; ++i) store(to + i * kGemmWidth, rows[i]);
    }
  }
}

// Columns of B in runs along the sum, which pack_right reads next: there, each line would be waited for.
struct ColumnsAhead {
  const float* at;
  int64_t step, columns, depths;

  void fetch_some(int64_t some) {
    constexpr int64_t kLine = 16;
    for (; some > 0 && columns > 0; --some, --columns, at += step)
      for (int64_t k = 0; k < depths; k += kLine) __builtin_prefetch(at + k, 0, 2);
  }
};
