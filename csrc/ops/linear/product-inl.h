// C = A B + bias in fp32: blocks of A and panels of B are packed close together, and multiplied in registers.
// A thread computes a rectangle of C alone, in steps of kDepth along the sums and kColumns across; how C is
// cut changes no sum. Saves nothing.

// Columns whose panels are packed for one step along the sums: at most 512 KB, an L2.
constexpr int64_t kColumns = 512;

// Panels of A that meet so many vectors of B at once: their sums fill the registers.
constexpr int panels_together(int vecs) { return kGemmVecs / vecs; }

// Where sums go: rows of C, of whose last vector `last` lanes exist; bias: of these columns, or null.
struct SumsOut {
  float* c;
  int64_t c_row, rows, last;
  const float* bias;
};

// C[rows, kVecs vectors] (+)= kPanels panels of A times one of B, + bias.
template <int kPanels, int kVecs, bool kAdd, bool kWhole>
__attribute__((noinline)) void multiply_panels(const float* left, const float* right, int64_t depths,
                                               const SumsOut& out) {
  constexpr int kRows = kPanels * kPanelRows;
  Vec sum[kRows][kVecs];
#pragma GCC unroll 24
  for (int i = 0; i < kRows; ++i) {
    __builtin_prefetch(out.c + (i < out.rows ? i : 0) * out.c_row, 1);
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) sum[i][j] = zero();
  }
  const auto step = [&](const float* a, const float* b) __attribute__((always_inline)) {
    Vec across[kVecs];
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) across[j] = load(b + j * kLanes);
#pragma GCC unroll 24
    for (int i = 0; i < kRows; ++i) {
      const Vec down = set1(a[i / kPanelRows * kLeftPanel + i % kPanelRows]);
#pragma GCC unroll 8
      for (int j = 0; j < kVecs; ++j) accumulate(sum[i][j], down, across[j]);
    }
  };
  constexpr int64_t kSteps = 4;
  int64_t k = 0;
#pragma GCC unroll 1
  for (; k + kSteps <= depths; k += kSteps) {
#pragma GCC unroll 8
    for (int64_t s = 0; s < kSteps; ++s) step(left + s * kPanelRows, right + s * kGemmWidth);
    left += kSteps * kPanelRows, right += kSteps * kGemmWidth;
  }
#pragma GCC unroll 1
  for (; k < depths; ++k, left += kPanelRows, right += kGemmWidth) step(left, right);
#pragma GCC unroll 24
  for (int i = 0; i < kRows; ++i) {
    if (i >= out.rows) return;
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) {
      float* const at = out.c + i * out.c_row + j * kLanes;
      const int64_t n = kWhole || j + 1 < kVecs ? kLanes : out.last;
      if (out.bias != nullptr) sum[i][j] = sum[i][j] + load_some(out.bias + j * kLanes, n);
      const Vec now = kAdd ? load_some(at, n) + sum[i][j] : sum[i][j];
      if (n == kLanes)
        store(at, now);
      else
        store_first(at, now, static_cast<int>(n));
    }
  }
}

// A panel of B with so many panels of A as are left, at most those that go together.
template <int kPanels, int kVecs, bool kAdd, bool kWhole>
FASTDL_INLINE void multiply_some_panels(int64_t panels, const float* left, const float* right, int64_t depths,
                                        const SumsOut& out) {
  if constexpr (kPanels > 1) {
    if (panels < kPanels)
      return multiply_some_panels<kPanels - 1, kVecs, kAdd, kWhole>(panels, left, right, depths, out);
  }
  multiply_panels<kPanels, kVecs, kAdd, kWhole>(left, right, depths, out);
}

// What a panel of B adds to its columns of C, which kVecs vectors hold. Fetches `ahead`.
template <int kVecs, bool kAdd, bool kWhole>
FASTDL_INLINE void multiply_vectors(SumsOut out, int64_t depths, const float* left, const float* right,
                                    ColumnsAhead ahead) {
  constexpr int kTogether = panels_together(kVecs);
  int64_t panels = (out.rows + kPanelRows - 1) / kPanelRows;
  const int64_t blocks = (panels + kTogether - 1) / kTogether, some = (ahead.columns + blocks - 1) / blocks;
  for (; panels > 0; panels -= kTogether, left += kTogether * kLeftPanel) {
    ahead.fetch_some(some);
    multiply_some_panels<kTogether, kVecs, kAdd, kWhole>(panels, left, right, depths, out);
    out.c += kTogether * kPanelRows * out.c_row, out.rows -= kTogether * kPanelRows;
  }
}

// The same for the vectors that there are, the last of which may be cut.
template <int kVecs, bool kAdd>
FASTDL_INLINE void multiply_cut_vectors(int64_t vecs, const SumsOut& out, int64_t depths, const float* left,
                                        const float* right, const ColumnsAhead& ahead) {
  if constexpr (kVecs > 1) {
    if (vecs < kVecs) return multiply_cut_vectors<kVecs - 1, kAdd>(vecs, out, depths, left, right, ahead);
  }
  multiply_vectors<kVecs, kAdd, false>(out, depths, left, right, ahead);
}

// The first time a panel of B sets its columns of C, with the bias.
inline void multiply_columns(const LinearProduct& p, int64_t row, int64_t rows, int64_t column,
                             int64_t columns, bool first, int64_t depths, const float* left,
                             const float* right, const ColumnsAhead& ahead) {
  const int64_t vecs = (columns + kLanes - 1) / kLanes;
  const SumsOut out = {p.output + row * p.N + column, p.N, rows, columns - (vecs - 1) * kLanes,
                       first && p.bias != nullptr ? p.bias + column : nullptr};
  if (columns == kGemmWidth)
    first ? multiply_vectors<kGemmVecs, false, true>(out, depths, left, right, ahead)
          : multiply_vectors<kGemmVecs, true, true>(out, depths, left, right, ahead);
  else
    first ? multiply_cut_vectors<kGemmVecs, false>(vecs, out, depths, left, right, ahead)
          : multiply_cut_vectors<kGemmVecs, true>(vecs, out, depths, left, right, ahead);
}

inline void multiply_rectangle(const LinearProduct& p, const Rectangle& r, float* left, float* right) {
  // Rows of B in a run are packed together; a panel of columns in a run just before it is used, in L1.
  const int64_t together = p.right_column == 1 ? kColumns : kGemmWidth;
  const int64_t most = even_depths(p.K);
  for (int64_t from = 0; from < r.columns; from += kColumns) {
    const int64_t columns = lesser(r.columns - from, kColumns);
    for (int64_t k = 0; k < p.K; k += most) {
      const int64_t depths = lesser(p.K - k, most);
      for (int64_t row = 0; row < r.rows; row += kBlockRows) {
        const int64_t rows = lesser(r.rows - row, kBlockRows);
        pack_left(p, r.row + row, rows, k, depths, left);
        for (int64_t j = 0; j < columns; j += kGemmWidth) {
          const int64_t column = r.column + from + j;
          if (row == 0 && j % together == 0)
            pack_right(p, column, lesser(columns - j, together), k, depths, right + j * depths);
          const int64_t next = together == kGemmWidth && row == 0 ? columns - j - together : 0;
          const ColumnsAhead ahead = {p.right + (column + together) * p.right_column + k * p.right_depth,
                                      p.right_column, lesser(next, together), depths};
          multiply_columns(p, r.row + row, rows, column, lesser(columns - j, kGemmWidth), k == 0, depths,
                           left, right + j * depths, ahead);
        }
      }
    }
  }
}

inline void product(const LinearProduct& p, const ThreadPool& pool) {
  constexpr int64_t kPack = 4;
  const Cut cut = cut_of(p, pool.size() > 1 ? pool.size() : 1, kPanelRows, kGemmWidth, kPack);
  const int64_t rows = cut.rows, columns = cut.columns;
  const int64_t down = (p.M + rows - 1) / rows, across = (p.N + columns - 1) / columns, tasks = down * across;
  constexpr int64_t kLeft = kBlockRows / kPanelRows * kLeftPanel;
  const bool few = has_few_rows(p);
  const int64_t each =
      few ? few_rows_floats(p, rows, columns) : kLeft + lesser(columns, kColumns) * lesser(p.K, kDepth);
  const int64_t workers = lesser(tasks, pool.size() > 1 ? pool.size() : 1);
  float* const scratch =
      static_cast<float*>(thread_scratch(static_cast<size_t>(workers * each) * sizeof(float)));
  parallel_tasks(pool, tasks, [&](int64_t task, int64_t worker) {
    const int64_t row = task % down * rows, column = task / down * columns;
    const Rectangle r = {row, lesser(p.M - row, rows), column, lesser(p.N - column, columns)};
    float* const own = scratch + worker * each;
    few ? multiply_few_rows(p, r, own) : multiply_rectangle(p, r, own, own + kLeft);
  });
}
