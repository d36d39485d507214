// How a product is cut: C into rectangles, one a task, and the sums into steps. Saves nothing. Included after
// product_pack-inl.h, once per instruction set: no include guard.

struct Rectangle {
  int64_t row, rows, column, columns;
};

// Steps along the sums of one length: a short last one would read and write C for little.
FASTDL_INLINE int64_t even_depths(int64_t K) {
  const int64_t steps = (K + kDepth - 1) / kDepth;
  return (K + steps * kLanes - 1) / (steps * kLanes) * kLanes;
}

// Rectangles down and across C of so many rows and columns.
struct Cut {
  int64_t rows, columns;
};

// The cut whose threads pack and multiply least. Packing a column of B, or only reading it, takes as long as
// multiplying it with `pack` rows; packing a row of A as multiplying it with as many columns.
inline Cut cut_of(const LinearProduct& p, int64_t threads, int64_t row_step, int64_t column_step,
                  int64_t pack) {
  const auto part = [](int64_t size, int64_t parts, int64_t step) {
    return ((size + parts - 1) / parts + step - 1) / step * step;
  };
  Cut best = {p.M, p.N};
  int64_t least = INT64_MAX;
  for (int64_t down = 1; down <= threads; ++down) {
    const Cut cut = {part(p.M, down, row_step), part(p.N, threads / down, column_step)};
    const int64_t cost = (cut.rows + pack) * (cut.columns + pack);
    if (cost < least) least = cost, best = cut;
  }
  return best;
}
