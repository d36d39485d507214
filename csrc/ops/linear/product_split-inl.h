// The same product by tiles of bf16, each number in three parts (common/cpu/split_gemm-inl.h): an AMX tile
// multiplies 16 times as many numbers as a vector, six times for one product. A thread computes a rectangle
// of C alone; how C is cut changes no sum. Saves nothing.

// For a step along the sums so many columns of B are packed, which stay in half an L2 of 2 MB while rows of A
// pass: those that were packed before for no more than kSplitTogether, 32 MB of them by all threads.
constexpr int64_t kSplitDepth = 512, kSplitColumns = 256, kSplitTogether = 4 * kSplitDepth;
constexpr int64_t kSplitMost = 1 << 24, kSplitMostOfThread = kSplitMost / 4, kSplitLeastRows = 128;
constexpr int64_t kSplitBlock = 2 * kTileHeight;

// Where tiles save more than packing costs (fastdl/ops/products.py).
FASTDL_INLINE bool splits(const LinearProduct& p) {
  return p.M >= 256 && p.N >= 256 && p.K >= 64 && p.M * p.N >= (1 << 20);
}

// Steps along the sums, of one length.
FASTDL_INLINE int64_t split_depth(int64_t K) {
  const int64_t steps = (K + kSplitDepth - 1) / kSplitDepth;
  return whole_tiles((K + steps - 1) / steps, kTileDepth);
}

// Rows of A that a thread packs together.
FASTDL_INLINE int64_t split_rows(int64_t rows, int64_t K, int64_t workers) {
  const int64_t elements = lesser(kSplitMost / workers, kSplitMostOfThread);
  const int64_t most =
      elements / split_panel(lesser(K, kSplitTogether)) * kTileHeight / kSplitBlock * kSplitBlock;
  return lesser(rows, most > kSplitLeastRows ? most : kSplitLeastRows);
}

// The sums of one step for a block of C, added to it (the first time: set, with the bias).
inline void multiply_split_block(const LinearProduct& p, const Rectangle& r, bool first, int64_t depth,
                                 const SplitPanels& left, const SplitPanels& right) {
  float* const c = p.output + r.row * p.N + r.column;
  alignas(64) float beside[kSplitBlock * kSplitBlock], beside_bias[kSplitBlock];
  const float* bias = first && p.bias != nullptr ? p.bias + r.column : nullptr;
  if (bias != nullptr && r.columns < kSplitBlock) {
    std::memcpy(beside_bias, bias, static_cast<size_t>(r.columns) * sizeof(float));
    bias = beside_bias;
  }
  const bool direct = first && r.rows % kTileHeight == 0 && r.columns % kTileHeight == 0;
  for (int64_t i = 0; i < r.rows && !direct; ++i)
    __builtin_prefetch(c + i * p.N, 1), __builtin_prefetch(c + i * p.N + kLanes, 1);
  float* const out = direct ? c : beside;
  const int64_t out_row = direct ? p.N : kSplitBlock;
  const bool tall = r.rows > kTileHeight, wide = r.columns > kTileHeight;
  if (tall)
    wide ? split_block<2, 2, false>(left, right, depth, bias, out, out_row)
         : split_block<2, 1, false>(left, right, depth, bias, out, out_row);
  else
    wide ? split_block<1, 2, false>(left, right, depth, bias, out, out_row)
         : split_block<1, 1, false>(left, right, depth, bias, out, out_row);
  if (direct) return;
  for (int64_t i = 0; i < r.rows; ++i)
    for (int64_t j = 0; j < r.columns; j += kLanes) {
      const int n = static_cast<int>(lesser(r.columns - j, kLanes));
      const Vec sum = load(beside + i * kSplitBlock + j);
      float* const at = c + i * p.N + j;
      if (n == kLanes)
        store(at, first ? sum : load(at) + sum);
      else
        store_first(at, first ? sum : load_first(at, n) + sum, n);
    }
}

// The largest magnitudes of A and of B that a thread has packed.
struct SplitRanges {
  SplitRange left, right;
};

// The columns of r, a few at a time, with rows of A packed at `left` for the steps from k to k_end.
inline void multiply_split_columns(const LinearProduct& p, const Rectangle& r, int64_t k_begin, int64_t k_end,
                                   int64_t step, const BFloat16* left, BFloat16* right, SplitRange& range) {
  const int64_t of_step = split_elements(r.rows, step);
  for (int64_t j = 0; j < r.columns; j += kSplitColumns) {
    const int64_t columns = lesser(r.columns - j, kSplitColumns), column = r.column + j;
    for (int64_t k = k_begin; k < k_end; k += step) {
      const int64_t depth = lesser(k_end - k, step), panel = split_panel(depth);
      const BFloat16* const rows = left + (k - k_begin) / step * of_step;
      split<true>({p.right + column * p.right_column + k * p.right_depth, p.right_column, p.right_depth},
                  columns, depth, right, range);
      for (int64_t y = 0; y < r.rows; y += kSplitBlock)
        for (int64_t x = 0; x < columns; x += kSplitBlock)
          multiply_split_block(
              p, {r.row + y, lesser(r.rows - y, kSplitBlock), column + x, lesser(columns - x, kSplitBlock)},
              k == 0, depth, {rows + y / kTileHeight * panel, panel},
              {right + x / kTileHeight * panel, panel});
    }
  }
}

inline void multiply_split(const LinearProduct& p, const Rectangle& r, BFloat16* left, BFloat16* right,
                           int64_t most_rows, SplitRanges& ranges) {
  const int64_t step = split_depth(p.K), together = kSplitTogether / step * step;
  for (int64_t k_begin = 0; k_begin < p.K; k_begin += together) {
    const int64_t k_end = lesser(k_begin + together, p.K);
    for (int64_t i = 0; i < r.rows; i += most_rows) {
      const int64_t rows = lesser(r.rows - i, most_rows), row = r.row + i;
      for (int64_t k = k_begin; k < k_end; k += step)
        split<false>({p.left + row * p.left_row + k * p.left_depth, p.left_row, p.left_depth}, rows,
                     lesser(k_end - k, step), left + (k - k_begin) / step * split_elements(rows, step),
                     ranges.left);
      multiply_split_columns(p, {row, rows, r.column, r.columns}, k_begin, k_end, step, left, right,
                             ranges.right);
    }
  }
}

// False: a number does not fit, C is to be computed again.
inline bool split_product(const LinearProduct& p, const ThreadPool& pool) {
  // Packing a number of B takes as long as multiplying it with so many rows; A's likewise.
  constexpr int64_t kPack = 64;
  const int64_t threads = pool.size() > 1 ? pool.size() : 1;
  // Two tasks a thread: tiles take 2.6 times as long where the other thread of a core is busy.
  const Cut cut = cut_of(p, threads > 1 ? 2 * threads : 1, kSplitBlock, kSplitBlock, kPack);
  const int64_t down = (p.M + cut.rows - 1) / cut.rows, across = (p.N + cut.columns - 1) / cut.columns;
  const int64_t tasks = down * across, workers = lesser(tasks, threads);
  const int64_t step = split_depth(p.K), steps = (lesser(p.K, kSplitTogether) + step - 1) / step;
  const int64_t rows = split_rows(cut.rows, p.K, workers);
  const int64_t left = steps * split_elements(rows, step),
                right = split_elements(lesser(cut.columns, kSplitColumns), step);
  const size_t bytes = static_cast<size_t>(left + right) * sizeof(BFloat16) + sizeof(SplitRanges);
  char* const scratch = static_cast<char*>(thread_scratch(static_cast<size_t>(workers) * bytes));
  const auto ranges_of = [&](int64_t worker) {
    return reinterpret_cast<SplitRanges*>(scratch + worker * static_cast<int64_t>(bytes));
  };
  for (int64_t worker = 0; worker < workers; ++worker) *ranges_of(worker) = {};
  parallel_tasks(pool, tasks, [&](int64_t task, int64_t worker) {
    const TileUse tiles;
    const DenormalsAreZero mode;
    const int64_t row = task % down * cut.rows, column = task / down * cut.columns;
    const Rectangle r = {row, lesser(p.M - row, cut.rows), column, lesser(p.N - column, cut.columns)};
    BFloat16* const own = reinterpret_cast<BFloat16*>(ranges_of(worker) + 1);
    multiply_split(p, r, own, own + left, rows, *ranges_of(worker));
  });
  SplitRanges all;
  for (int64_t worker = 0; worker < workers; ++worker) {
    all.left.widen_by(ranges_of(worker)->left);
    all.right.widen_by(ranges_of(worker)->right);
  }
  return fit_together(all.left, all.right, p.K);
}
