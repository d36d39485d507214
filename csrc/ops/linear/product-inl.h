// C = A B + bias in fp32: blocks of A and panels of B are packed close together, and multiplied in registers.
// A thread computes a rectangle of C alone, in steps of kDepth along the sums and kColumns across; how C is
// cut changes no sum. Saves nothing.

// Columns whose panels are packed for one step along the sums: at most 512 KB, an L2.
constexpr int64_t kColumns = 512;

// C[rows, kGemmWidth] (+)= a panel of A times one of B, + bias (null: none); rows <= kPanelRows.
template <bool kAdd>
__attribute__((noinline)) void multiply_panels(const float* left, const float* right, int64_t depths,
                                               int64_t rows, float* c, int64_t c_row, const float* bias) {
  Vec sum[kPanelRows][kGemmVecs];
#pragma GCC unroll 8
  for (int i = 0; i < kPanelRows; ++i) {
    __builtin_prefetch(c + (i < rows ? i : 0) * c_row, 1);
#pragma GCC unroll 8
    for (int j = 0; j < kGemmVecs; ++j) sum[i][j] = zero();
  }
  const auto step = [&](const float* a, const float* b) __attribute__((always_inline)) {
    Vec across[kGemmVecs];
#pragma GCC unroll 8
    for (int j = 0; j < kGemmVecs; ++j) across[j] = load(b + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kPanelRows; ++i) {
      const Vec down = set1(a[i]);
#pragma GCC unroll 8
      for (int j = 0; j < kGemmVecs; ++j) accumulate(sum[i][j], down, across[j]);
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
#pragma GCC unroll 8
  for (int i = 0; i < kPanelRows; ++i) {
    if (i >= rows) return;
#pragma GCC unroll 8
    for (int j = 0; j < kGemmVecs; ++j) {
      float* const at = c + i * c_row + j * kLanes;
      if (bias != nullptr) sum[i][j] = sum[i][j] + load(bias + j * kLanes);
      store(at, kAdd ? load(at) + sum[i][j] : sum[i][j]);
    }
  }
}

// What a panel of B adds to its columns of C: the first time it sets them, with the bias. Fetches `ahead`.
inline void multiply_columns(const LinearProduct& p, int64_t row, int64_t rows, int64_t column,
                             int64_t columns, bool first, int64_t depths, const float* left,
                             const float* right, ColumnsAhead ahead) {
  const bool whole = columns == kGemmWidth;
  alignas(64) float beside[kBlockRows * kGemmWidth], beside_bias[kGemmWidth] = {};
  float* const c = p.output + row * p.N + column;
  float* const out = whole ? c : beside;
  const int64_t out_row = whole ? p.N : kGemmWidth;
  const float* bias = first && p.bias != nullptr ? p.bias + column : nullptr;
  if (bias != nullptr && !whole) {
    std::memcpy(beside_bias, bias, static_cast<size_t>(columns) * sizeof(float));
    bias = beside_bias;
  }
  const int64_t panels = (rows + kPanelRows - 1) / kPanelRows, some = (ahead.columns + panels - 1) / panels;
  for (int64_t i = 0; i < rows; i += kPanelRows, left += kLeftPanel) {
    const auto multiply = first || !whole ? multiply_panels<false> : multiply_panels<true>;
    ahead.fetch_some(some);
    multiply(left, right, depths, lesser(rows - i, kPanelRows), out + i * out_row, out_row, bias);
  }
  if (whole) return;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      float& at = c[i * p.N + j];
      at = beside[i * kGemmWidth + j] + (first ? 0 : at);
    }
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
