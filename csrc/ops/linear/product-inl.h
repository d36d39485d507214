// C = A B + bias in fp32: blocks of A and panels of B are copied close together, and multiplied in registers.
// A thread computes a rectangle of C alone, in steps of kDepth along the sums and kColumns across; how C is
// cut changes no sum. Saves nothing.

#include "common/cpu/gemm-inl.h"

// A panel of B, kDepth x kGemmWidth, stays in L1; a block of A, kBlockRows x kDepth, in L2.
constexpr int64_t kDepth = FASTDL_ISA >= FASTDL_ISA_AVX512 ? 128 : 256;
constexpr int64_t kBlockRows = 96, kColumns = 1024;
// Rows of a power of two would share cache sets.
constexpr int64_t kLeftRow = kDepth + 16;

struct Rectangle {
  int64_t row, rows, column, columns;
};

FASTDL_INLINE int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

// A[row .. + rows, depth .. + depths], each run of memory as it lies.
inline void copy_left(const LinearProduct& p, int64_t row, int64_t rows, int64_t depth, int64_t depths,
                      float* out) {
  const float* const from = p.left + row * p.left_row + depth * p.left_depth;
  if (p.left_depth == 1) {
    for (int64_t i = 0; i < rows; ++i)
      std::memcpy(out + i * kLeftRow, from + i * p.left_row, static_cast<size_t>(depths) * sizeof(float));
    return;
  }
  for (int64_t k = 0; k < depths; ++k)
    std::memcpy(out + k * kBlockRows, from + k * p.left_depth, static_cast<size_t>(rows) * sizeof(float));
}

// B[depth .. + depths, column .. + columns] as panels [depths][kGemmWidth], the last one filled up with
// zeros.
inline void copy_right(const LinearProduct& p, int64_t column, int64_t columns, int64_t depth, int64_t depths,
                       float* out) {
  const float* const from = p.right + column * p.right_column + depth * p.right_depth;
  const int64_t vectors = (columns + kGemmWidth - 1) / kGemmWidth * kGemmVecs;
  // A few rows of B at a time: each lies in pages of its own.
  constexpr int64_t kSome = kLanes;
  for (int64_t k = 0; k < depths; k += kSome) {
    const int64_t some = lesser(depths - k, kSome);
    for (int64_t v = 0; v < vectors; ++v) {
      float* const to = out + (v / kGemmVecs * depths + k) * kGemmWidth + v % kGemmVecs * kLanes;
      const int n = static_cast<int>(lesser(columns - v * kLanes, kLanes));
      const float* const at = from + v * kLanes * p.right_column + k * p.right_depth;
      if (p.right_column == 1) {
        for (int64_t i = 0; i < some; ++i) {
          const float* const row = at + i * p.right_depth;
          store(to + i * kGemmWidth, n == kLanes ? load(row) : n > 0 ? load_first(row, n) : zero());
        }
        continue;
      }
      Vec rows[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const float* const row = at + i * p.right_column;
        rows[i] = i >= n ? zero() : some == kSome ? load(row) : load_first(row, static_cast<int>(some));
      }
      transpose(rows);
      for (int i = 0; i < some; ++i) store(to + i * kGemmWidth, rows[i]);
    }
  }
}

// What a panel adds to its columns of C: the first time it sets them, with the bias.
inline void multiply_panel(const LinearProduct& p, int64_t row, int64_t rows, int64_t column, int64_t columns,
                           bool first, int64_t depths, const float* left, const float* panel) {
  const bool by_rows = p.left_depth == 1, whole = columns == kGemmWidth;
  alignas(64) float beside[kBlockRows * kGemmWidth];
  float* const c = p.output + row * p.N + column;
  float* const out = whole ? c : beside;
  const int64_t out_row = whole ? p.N : kGemmWidth;
  const GemmStrides strides = {by_rows ? kLeftRow : 1, by_rows ? 1 : kBlockRows, kGemmWidth, out_row, kLanes};
  if (first || !whole)
    gemm<false>(rows, kGemmVecs, left, panel, out, depths, strides);
  else
    gemm<true>(rows, kGemmVecs, left, panel, out, depths, strides);
  if (whole && (!first || p.bias == nullptr)) return;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; j += kLanes) {
      const int n = static_cast<int>(lesser(columns - j, kLanes));
      Vec sum = load(out + i * out_row + j);
      if (first && p.bias != nullptr) sum = sum + load_first(p.bias + column + j, n);
      float* const to = c + i * p.N + j;
      if (!first) sum = sum + load_first(to, n);
      store_first(to, sum, n);
    }
  }
}

inline void multiply_rectangle(const LinearProduct& p, const Rectangle& r, float* left, float* right) {
  for (int64_t column = 0; column < r.columns; column += kColumns) {
    const int64_t columns = lesser(r.columns - column, kColumns);
    for (int64_t k = 0; k < p.K; k += kDepth) {
      const int64_t depths = lesser(p.K - k, kDepth);
      copy_right(p, r.column + column, columns, k, depths, right);
      for (int64_t row = 0; row < r.rows; row += kBlockRows) {
        const int64_t rows = lesser(r.rows - row, kBlockRows);
        copy_left(p, r.row + row, rows, k, depths, left);
        for (int64_t j = 0; j < columns; j += kGemmWidth)
          multiply_panel(p, r.row + row, rows, r.column + column + j, lesser(columns - j, kGemmWidth), k == 0,
                         depths, left, right + j * depths);
      }
    }
  }
}

// Rectangles down and across C: the cut whose threads copy and multiply least.
struct Cut {
  int64_t down, across;

  int64_t rows(const LinearProduct& p) const { return part(p.M, down, gemm_rows<kGemmVecs>()); }
  int64_t columns(const LinearProduct& p) const { return part(p.N, across, kGemmWidth); }
  static int64_t part(int64_t size, int64_t parts, int64_t step) {
    return ((size + parts - 1) / parts + step - 1) / step * step;
  }
};

inline Cut cut_of(const LinearProduct& p, int64_t threads) {
  // Copying a column of B takes as long as multiplying it with so many rows.
  constexpr int64_t kCopy = 4;
  Cut best = {1, 1};
  int64_t least = INT64_MAX;
  for (int64_t down = 1; down <= threads; ++down) {
    const Cut cut = {down, threads / down};
    const int64_t cost = (cut.rows(p) + kCopy) * cut.columns(p);
    if (cost < least) least = cost, best = cut;
  }
  return best;
}

inline void product(const LinearProduct& p, const ThreadPool& pool) {
  const Cut cut = cut_of(p, pool.size() > 1 ? pool.size() : 1);
  const int64_t rows = cut.rows(p), columns = cut.columns(p);
  const int64_t down = (p.M + rows - 1) / rows, across = (p.N + columns - 1) / columns, tasks = down * across;
  constexpr int64_t kLeft = kBlockRows * kLeftRow;
  const int64_t each = kLeft + lesser(columns, kColumns) * lesser(p.K, kDepth) + 16;
  const int64_t workers = lesser(tasks, pool.size() > 1 ? pool.size() : 1);
  float* const scratch =
      static_cast<float*>(thread_scratch(static_cast<size_t>(workers * each) * sizeof(float)));
  parallel_tasks(pool, tasks, [&](int64_t task, int64_t worker) {
    const int64_t row = task % down * rows, column = task / down * columns;
    const Rectangle r = {row, lesser(p.M - row, rows), column, lesser(p.N - column, columns)};
    float* const own = scratch + worker * each;
    multiply_rectangle(p, r, own, own + kLeft);
  });
}

typedef void (*ProductFunction)(const LinearProduct&, const ThreadPool&);
constexpr ProductFunction kProduct[] = {product};
