// C^T = B^T A^T + bias in fp32 where A has few rows and B's columns are runs along the sums, as the rows of a
// weight are: to pack B would take a fifth of the time. B is read where it lies, a run of each column at a
// time, and only A is packed. A thread computes a rectangle of C alone. Saves nothing.

// From here on packing costs less than the sums that are kept in L2.
constexpr int64_t kFewRows = 160;

// Columns whose sums a thread holds: with a packed block of A they stay in an L2 of 512 KB.
constexpr int64_t kFewColumns = 512;

// Columns of B at once: whole register blocks of C^T whatever the vectors of a row are.
constexpr int64_t kRunsTogether = 12;

FASTDL_INLINE bool has_few_rows(const LinearProduct& p) { return p.right_depth == 1 && p.M <= kFewRows; }

// Floats of A's packed rows and, after them, of the sums of a rectangle.
FASTDL_INLINE int64_t few_rows_packed(const LinearProduct& p, int64_t rows) {
  return (rows + kGemmWidth - 1) / kGemmWidth * kGemmWidth * lesser(p.K, kDepth);
}
FASTDL_INLINE int64_t few_rows_stride(int64_t rows) { return (rows + kLanes - 1) / kLanes * kLanes; }
FASTDL_INLINE int64_t few_rows_floats(const LinearProduct& p, int64_t rows, int64_t columns) {
  return few_rows_packed(p, rows) + few_rows_stride(rows) * lesser(columns, kFewColumns);
}

// The product of the transposes: its right side is A.
FASTDL_INLINE LinearProduct turned(const LinearProduct& p) {
  LinearProduct t = p;
  t.M = p.N, t.N = p.M;
  t.left = p.right, t.left_row = p.right_column, t.left_depth = p.right_depth;
  t.right = p.left, t.right_column = p.left_row, t.right_depth = p.left_depth;
  return t;
}

// sums[column][row], rows rounded up to whole vectors -> C[row][column] with the bias.
inline void store_turned(const float* sums, int64_t sums_row, const LinearProduct& p, const Rectangle& r) {
  for (int64_t i = 0; i < r.rows; i += kLanes)
    for (int64_t j = 0; j < r.columns; j += kLanes) {
      const int64_t rows = lesser(r.rows - i, kLanes), columns = lesser(r.columns - j, kLanes);
      Vec block[kLanes];
#pragma GCC unroll 16
      for (int k = 0; k < kLanes; ++k) block[k] = k < columns ? load(sums + (j + k) * sums_row + i) : zero();
      transpose(block);
      const Vec bias = p.bias == nullptr ? zero() : load_some(p.bias + r.column + j, columns);
      float* const to = p.output + (r.row + i) * p.N + r.column + j;
      for (int64_t k = 0; k < rows; ++k) {
        const Vec v = block[k] + bias;
        if (columns == kLanes)
          store(to + k * p.N, v);
        else
          store_first(to + k * p.N, v, static_cast<int>(columns));
      }
    }
}

// Depths [depth, depth + depths) of all columns of a rectangle. Meanwhile fetches the columns that are next,
// at last those of the next depths, and the next depths of A: from one run to another no hardware looks
// ahead.
inline void add_turned(const LinearProduct& p, const Rectangle& r, int64_t depth, int64_t depths,
                       int64_t next_depths, const float* packed, float* sums, int64_t sums_row) {
  const int64_t panels = (r.rows + kGemmWidth - 1) / kGemmWidth, next = depth + depths;
  const int64_t blocks = (r.columns + kRunsTogether - 1) / kRunsTogether;
  ColumnsAhead rows = {p.left + r.row * p.left_row + next * p.left_depth, p.left_row,
                       p.left_depth == 1 && next_depths > 0 ? r.rows : 0, next_depths};
  for (int64_t j = 0; j < r.columns; j += kRunsTogether) {
    const int64_t columns = lesser(r.columns - j, kRunsTogether), left = r.columns - j - columns;
    const float* const runs = p.right + (r.column + j) * p.right_column + depth;
    ColumnsAhead ahead = {runs + columns * p.right_column, p.right_column, lesser(left, kRunsTogether),
                          depths};
    if (left == 0)
      ahead = {p.right + r.column * p.right_column + next, p.right_column,
               next_depths > 0 ? lesser(r.columns, kRunsTogether) : 0, next_depths};
    const int64_t some = (ahead.columns + panels - 1) / panels;
    rows.fetch_some((r.rows + blocks - 1) / blocks);
    for (int64_t panel = 0; panel < panels; ++panel) {
      ahead.fetch_some(some);
      const int64_t row = panel * kGemmWidth;
      const GemmStrides strides = {p.right_column, 1, kGemmWidth, sums_row, kLanes};
      float* const to = sums + j * sums_row + row;
      gemm(depth > 0, columns, vectors_from(row, r.rows), runs, packed + row * depths, to, depths, strides);
    }
  }
}

inline void multiply_few_rows(const LinearProduct& p, const Rectangle& r, float* packed) {
  const LinearProduct t = turned(p);
  const int64_t most = even_depths(p.K), sums_row = few_rows_stride(r.rows);
  float* const sums = packed + few_rows_packed(p, r.rows);
  for (int64_t from = 0; from < r.columns; from += kFewColumns) {
    const Rectangle some = {r.row, r.rows, r.column + from, lesser(r.columns - from, kFewColumns)};
    for (int64_t k = 0; k < p.K; k += most) {
      const int64_t depths = lesser(p.K - k, most);
      for (int64_t i = 0; i < r.rows; i += kGemmWidth)
        pack_right(t, r.row + i, lesser(r.rows - i, kGemmWidth), k, depths, packed + i * depths);
      add_turned(p, some, k, depths, lesser(p.K - k - depths, most), packed, sums, sums_row);
    }
    store_turned(sums, sums_row, p, some);
  }
}
