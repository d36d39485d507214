// C[rows, vectors] (+)= A[rows, depth] times a packed panel [depth, kPanelWidth], in sums of a few products
// each: the error of one long chain is larger than torch's. Sums of a piece stay in registers and are added
// to C, which lies in L1, while the next piece runs. One thread. Saves nothing.

// C held at once: 12 of 16 registers, or 24 of 32. 4 x 3 loads 7 times for 12 products, 6 x 2 would 8 times,
// and 8 rows are two whole blocks. Without FMA a product needs a register more.
// A column tile is 16 lanes, which three vectors do not hold.
#if FASTDL_ISA == FASTDL_ISA_AVX2 && !FASTDL_TILES
constexpr int kPanelVecs = 3, kPanelRows = 4;
#else
constexpr int kPanelVecs = kRegisters / 8, kPanelRows = 6;
#endif
constexpr int kPanelWidth = kPanelVecs * kLanes;

// Products summed before C is touched.
constexpr int64_t kMostDepth = 80;

// Bytes of a panel that all rows pass before the next ones: half of a small L1.
constexpr int64_t kPanelBytes = 16 * 1024;

// Steps along the depth at once. GCC finds no registers for the addresses of 6 rows from one pointer and a
// stride.
constexpr int64_t kDepthUnroll = 4;

struct PanelProduct {
  int64_t a_row, c_row;
  int64_t depth, piece;  // piece: of the depth
  bool add;
};

template <int kRows, int kVecs>
FASTDL_INLINE void panel_step(Vec (&sum)[kRows][kVecs], const float* const (&rows)[kRows], int64_t k,
                              const float* b) {
  Vec right[kVecs];
#pragma GCC unroll 4
  for (int j = 0; j < kVecs; ++j) right[j] = load(b + j * kLanes);
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
    const Vec left = set1(rows[i][k]);
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) accumulate(sum[i][j], left, right[j]);
  }
}

template <int kRows, int kVecs>
FASTDL_INLINE void panel_block(const float* a, const float* b, float* c, const PanelProduct& p) {
  const float* rows[kRows];
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) rows[i] = a + i * p.a_row;
  const int64_t depth = p.depth, piece = p.piece, c_row = p.c_row;
  bool add = p.add;
  for (int64_t k = 0; k < depth; add = true) {
    const int64_t end = k + piece < depth ? k + piece : depth;
    Vec sum[kRows][kVecs];
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) sum[i][j] = zero();
#pragma GCC unroll 1
    for (; k + kDepthUnroll <= end; k += kDepthUnroll, b += kDepthUnroll * kPanelWidth)
#pragma GCC unroll 4
      for (int64_t u = 0; u < kDepthUnroll; ++u)
        panel_step<kRows, kVecs>(sum, rows, k + u, b + u * kPanelWidth);
#pragma GCC unroll 1
    for (; k < end; ++k, b += kPanelWidth) panel_step<kRows, kVecs>(sum, rows, k, b);
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) {
        float* const out = c + i * c_row + j * kLanes;
        store(out, add ? load(out) + sum[i][j] : sum[i][j]);
      }
  }
}

// One block of `rows` rows, 1 <= rows <= kRows.
template <int kRows, int kVecs>
FASTDL_INLINE void panel_block_of(int64_t rows, const float* a, const float* b, float* c,
                                  const PanelProduct& p) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return panel_block_of<kRows - 1, kVecs>(rows, a, b, c, p);
  }
  panel_block<kRows, kVecs>(a, b, c, p);
}

// Any number of rows, in blocks as even as can be: 7 rows run as 4 + 3, 13 of panels of 6 as 5 + 4 + 4.
template <int kVecs>
__attribute__((noinline)) void panel_rows(int64_t rows, const float* a, const float* b, float* c,
                                          const PanelProduct& p) {
  for (int64_t blocks = (rows + kPanelRows - 1) / kPanelRows; blocks > 0; --blocks) {
    const int64_t block = (rows + blocks - 1) / blocks;
    panel_block_of<kPanelRows, kVecs>(block, a, b, c, p);
    a += block * p.a_row;
    c += block * p.c_row;
    rows -= block;
  }
}

// The first `vecs` vectors of the panel, 1 <= vecs <= kPanelVecs.
void multiply_panel(int64_t rows, int64_t vecs, const float* a, int64_t a_row, const float* panel,
                    int64_t depth, float* c, int64_t c_row) {
  const int64_t pieces = (depth + kMostDepth - 1) / kMostDepth;
  const int64_t even = pieces > 0 ? (depth + pieces - 1) / pieces : 1;
  const int64_t piece = (even + kDepthUnroll - 1) / kDepthUnroll * kDepthUnroll;
  const int64_t together = kPanelBytes / (piece * kPanelWidth * static_cast<int64_t>(sizeof(float)));
  const int64_t span = (together > 0 ? together : 1) * piece;
  for (int64_t k = 0; k < depth; k += span) {
    const PanelProduct p = {a_row, c_row, depth - k < span ? depth - k : span, piece, k > 0};
    const float* const b = panel + k * kPanelWidth;
    if (vecs == 1) panel_rows<1>(rows, a + k, b, c, p);
    if (vecs == 2) panel_rows<2>(rows, a + k, b, c, p);
    if constexpr (kPanelVecs >= 3) {
      if (vecs == 3) panel_rows<3>(rows, a + k, b, c, p);
    }
    if constexpr (kPanelVecs == 4) {
      if (vecs == 4) panel_rows<4>(rows, a + k, b, c, p);
    }
  }
}
