// The products of attention in fp32 by tiles, each number in three parts of bf16
// (common/cpu/split_gemm-inl.h), for forward and backward as in attention_vectors-inl.h. One thread. Saves
// nothing. Included by foreach_isa.h where the instruction set has FASTDL_SPLIT_TILES: no include guard.

struct SplitUse {
  TileUse tiles;
  DenormalsAreZero mode;

  SplitUse() {}
};

// Floats in the place of so many bf16.
FASTDL_INLINE int64_t split_floats(int64_t lanes, int64_t depth) { return split_elements(lanes, depth) / 2; }

// A row of powers in the row of 16 of a tile, pair by pair, that is its own.
struct SplitRow {
  static constexpr bool kFloats = false;
  BFloat16* at;

  void put(int64_t j, Vec low, Vec high, SplitRange& range) const {
    split_row(low, high, at + j / kTileDepth * kSplitParts * kTileElements, range);
  }
  void put(int64_t j, Vec low, Vec high) const {
    SplitRange unused;
    split_row<true>(low, high, at + j / kTileDepth * kSplitParts * kTileElements, unused);
  }
  void end() const {}
};

// Rows of A, at + i of its rows the i-th of `rows`: a run need not begin a tile.
inline void split_rows(const float* from, int64_t row_stride, int64_t at, int64_t rows, int64_t depth,
                       BFloat16* to, SplitRange& range) {
  const int64_t panel = split_panel(depth);
  SplitRange own = range;
  for (int64_t i = at; i < at + rows; ++i, from += row_stride) {
    const SplitRow row = {to + i / kTileHeight * panel + i % kTileHeight * kTileDepth};
    for (int64_t d = 0; d < depth; d += kTileDepth)
      row.put(d, load_some(from + d, depth - d), load_some(from + d + kLanes, depth - d - kLanes), own);
  }
  range = own;
}

// Rows of tiles `panel` apart.
struct SplitRows {
  BFloat16* at;
  int64_t panel;

  SplitRow operator()(int64_t r, float*, int64_t) const {
    return {at + r / kTileHeight * panel + r % kTileHeight * kTileDepth};
  }
};

// Of powers, times the factor of those that a dropout keeps.
FASTDL_INLINE SplitRange powers_range(const AttentionCall& c) {
  return SplitRange::up_to(1.0f / (1.0f - c.dropout_p));
}

struct ForwardSizes {
  SplitRange q, k, v;

  void widen_by(const ForwardSizes& other) { q.widen_by(other.q), k.widen_by(other.k), v.widen_by(other.v); }
  bool fit(const AttentionCall& c) const {
    return fit_together(q, k, c.D) && fit_together(powers_range(c), v, c.max_k);
  }
};

struct SplitForward {
  typedef SplitUse Use;
  typedef ForwardSizes Sizes;
  typedef SplitRows RowOfPowers;
  static constexpr int64_t kRows = 32;  // a pair of tiles
  static constexpr bool kBeside = true;

  Sizes sizes;
  BFloat16 *q, *k, *v, *powers;
  SplitPanels values;

  static int64_t floats(const AttentionCall& c) {
    return split_floats(kChunk, c.D) + split_floats(kBlockN, c.D) + split_floats(c.D_v, kBlockN) +
           2 * split_floats(kRows, kBlockN);
  }
  SplitForward(float* at, const AttentionCall& c) {
    q = reinterpret_cast<BFloat16*>(at), k = q + split_elements(kChunk, c.D);
    v = k + split_elements(kBlockN, c.D), powers = v + split_elements(c.D_v, kBlockN);
  }

  void take_rows(const Group<float>& g, int64_t first, int64_t count) {
    g.runs(g.c.q, g.c.q_strides, first, count, [&](const float* from, int64_t at, int64_t n) {
      split_rows(from, g.c.q_strides.l, at, n, g.c.D, q, sizes.q);
    });
  }
  void take_keys(const Group<float>& g, int64_t k0, int64_t n) {
    split<true>({g.k(k0), g.c.k_strides.l, 1}, n, g.c.D, k, sizes.k);
    split<true>({g.v(k0), 1, g.c.v_strides.l}, g.c.D_v, n, v, sizes.v);
    values = split_panels(v, n);
  }
  template <class... Beside>
  void scores(const AttentionCall& c, int64_t m0, int64_t m, int64_t n, float* to, Beside&... beside) const {
    const int64_t panel = split_panel(c.D);
    multiply_split_tiles<false>(m, c.D, n, {q + m0 / kTileHeight * panel, panel}, {k, panel}, to, kScoresRow,
                                beside...);
  }
  RowOfPowers row_of_powers(int64_t t, int64_t n) const { return {powers_of(t), split_panel(n)}; }
  template <class... Beside>
  void multiply_values(bool add, const AttentionCall& c, int64_t t, int64_t m, int64_t n, float*,
                       float* output, Beside&... beside) const {
    const SplitPanels left = split_panels(powers_of(t), n);
    const int64_t o_stride = padded_stride(c.D_v);
    add ? multiply_split_tiles<true>(m, n, c.D_v, left, values, output, o_stride, beside...)
        : multiply_split_tiles<false>(m, n, c.D_v, left, values, output, o_stride, beside...);
  }

 private:
  BFloat16* powers_of(int64_t t) const { return powers + t % 2 * split_elements(kRows, kBlockN); }
};

struct BackwardSizes {
  SplitRange q, k, v, grad_output, grad_s;

  void widen_by(const BackwardSizes& other) {
    q.widen_by(other.q), k.widen_by(other.k), v.widen_by(other.v);
    grad_output.widen_by(other.grad_output), grad_s.widen_by(other.grad_s);
  }
  bool fit(const AttentionCall& c) const {
    const int64_t rows = c.H / c.H_kv * c.max_q;
    return fit_together(q, k, c.D) && fit_together(grad_output, v, c.D_v) &&
           fit_together(powers_range(c), grad_output, rows) && fit_together(grad_s, q, rows) &&
           fit_together(grad_s, k, c.max_k);
  }
};

// Gradients of k and v summed transposed, as TileBackward has it.
struct SplitBackward {
  typedef SplitUse Use;
  typedef BackwardSizes Sizes;
  static constexpr int64_t kRows = 64;
  static constexpr int64_t kKeys = 256;  // rows are packed once for each block of keys

  Sizes sizes;
  BFloat16 *q, *grad_output, *q_columns, *grad_output_columns;  // of the tile's rows; transposed
  BFloat16 *k, *k_rows, *v;
  SplitPanels keys;                                          // k_rows
  BFloat16* tile;                                            // powers or grad_s, the one after the other
  float *grad_k_columns, *grad_v_columns, *grad_k, *grad_v;  // [whole tiles][kKeys], [kKeys][padded_stride]
  float* rows;                                               // [kRows][padded_stride]

  static int64_t floats(const AttentionCall& c) {
    const int64_t D = padded_stride(c.D), D_v = padded_stride(c.D_v);
    return split_floats(kRows, c.D) + split_floats(kRows, c.D_v) + split_floats(c.D, kRows) +
           split_floats(c.D_v, kRows) + split_floats(kKeys, c.D) + split_floats(kKeys, c.D_v) +
           split_floats(c.D, kKeys) + split_floats(kKeys, kRows) +
           kKeys * (whole_tiles(c.D, kTileHeight) + whole_tiles(c.D_v, kTileHeight) + D + D_v) +
           kRows * (D > D_v ? D : D_v);
  }
  SplitBackward(float* at, const AttentionCall& c) {
    const auto take = [&at](int64_t floats) {
      float* const own = at;
      at += floats;
      return own;
    };
    const auto split_at = [&](int64_t lanes, int64_t depth) {
      return reinterpret_cast<BFloat16*>(take(split_floats(lanes, depth)));
    };
    q = split_at(kRows, c.D), grad_output = split_at(kRows, c.D_v);
    q_columns = split_at(c.D, kRows), grad_output_columns = split_at(c.D_v, kRows);
    k = split_at(kKeys, c.D), v = split_at(kKeys, c.D_v), k_rows = split_at(c.D, kKeys);
    tile = split_at(kKeys, kRows);
    grad_k_columns = take(kKeys * whole_tiles(c.D, kTileHeight));
    grad_v_columns = take(kKeys * whole_tiles(c.D_v, kTileHeight));
    grad_k = take(kKeys * padded_stride(c.D)), grad_v = take(kKeys * padded_stride(c.D_v));
    rows = at;
  }

  void take_keys(const Group<float>& g, int64_t k0, int64_t n) {
    split<true>({g.k(k0), g.c.k_strides.l, 1}, n, g.c.D, k, sizes.k);
    split<true>({g.v(k0), g.c.v_strides.l, 1}, n, g.c.D_v, v, sizes.v);
  }
  void take_rows(const AttentionBackward& args, const Group<float>& g, int64_t first, int64_t m) {
    take(g.rows_at(g.c.q, g.c.q_strides, first, m, g.c.D, false, rows), m, g.c.D, q, q_columns, sizes.q);
    take(g.rows_at(args.grad_output, args.grad_output_strides, first, m, g.c.D_v, false, rows), m, g.c.D_v,
         grad_output, grad_output_columns, sizes.grad_output);
  }
  void scores(const AttentionCall& c, int64_t m, int64_t n, float* to) const {
    multiply_split_tiles<false>(m, c.D, n, split_panels(q, c.D), split_panels(k, c.D), to, kKeys);
  }
  void grad_powers(const AttentionCall& c, int64_t m, int64_t n, float* to) const {
    multiply_split_tiles<false>(m, c.D_v, n, split_panels(grad_output, c.D_v), split_panels(v, c.D_v), to,
                                kKeys);
  }

  void begin_gradients(const Group<float>& g, int64_t k0, int64_t n) {
    split<true>({g.k(k0), 1, g.c.k_strides.l}, g.c.D, n, k_rows, sizes.k);
    keys = split_panels(k_rows, n);
    const int64_t both = kKeys * (whole_tiles(g.c.D, kTileHeight) + whole_tiles(g.c.D_v, kTileHeight));
    for (int64_t i = 0; i < both; i += kLanes) store(grad_k_columns + i, zero());
  }
  void add_gradients(const AttentionCall& c, int64_t m, int64_t n, const float* powers, const float* grad_s,
                     float* grad_q) {
    const SplitPanels right = split_panels(tile, m);
    SplitRange unused;
    split<true, true>({powers, 1, kKeys}, n, m, tile, unused);
    multiply_split_tiles<true>(c.D_v, m, n, split_panels(grad_output_columns, m), right, grad_v_columns,
                               kKeys);
    split<true, true>({grad_s, 1, kKeys}, n, m, tile, sizes.grad_s);
    multiply_split_tiles<true>(c.D, m, n, split_panels(q_columns, m), right, grad_k_columns, kKeys);
    split<false, true>({grad_s, kKeys, 1}, m, n, tile, unused);
    multiply_split_tiles<true>(m, n, c.D, split_panels(tile, n), keys, grad_q, padded_stride(c.D));
  }
  void end_gradients(const AttentionCall& c, int64_t n) const {
    transpose_columns<kKeys>(grad_k_columns, c.D, n, grad_k);
    transpose_columns<kKeys>(grad_v_columns, c.D_v, n, grad_v);
  }

 private:
  static void take(const RowsAt& from, int64_t m, int64_t width, BFloat16* rows, BFloat16* columns,
                   SplitRange& range) {
    split<false>({from.at, from.stride, 1}, m, width, rows, range);
    split<false>({from.at, 1, from.stride}, width, m, columns, range);
  }
};
