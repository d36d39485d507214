// The products of attention in bf16 by tiles, for forward and backward as in attention_vectors-inl.h: powers
// and the gradients of scores are rounded to bf16. One thread. Saves nothing. Included by foreach_isa.h where
// the instruction set has FASTDL_TILES: no include guard.

// Row stride of n elements of A: whole tiles, an odd number of cache lines.
FASTDL_INLINE int64_t left_stride(int64_t n) { return (tiles_of(n, kTileDepth) | 1) * kTileDepth; }

// n elements of bf16 in floats, whole cache lines.
FASTDL_INLINE int64_t as_floats(int64_t n) { return round_up(n, 32) / 2; }

// A row of powers in bf16 at the beginning of its scores, 0 up to whole tiles.
struct NarrowedRow {
  static constexpr bool kFloats = false;
  BFloat16* at;
  int64_t padded;

  void put(int64_t j, Vec low, Vec high) const { store_narrowed(at + j, low, high); }
  void end() const {
    for (int64_t j = round_up(padded, 2 * kLanes); j < round_up(padded, kTileDepth); j += 2 * kLanes)
      put(j, zero(), zero());
  }
};

struct NarrowedInPlace {
  NarrowedRow operator()(int64_t, float* scores, int64_t padded) const {
    return {reinterpret_cast<BFloat16*>(scores), padded};
  }
};

struct TileForward {
  typedef TileUse Use;
  typedef AnySizes Sizes;
  typedef NarrowedInPlace RowOfPowers;
  static constexpr int64_t kRows = 32;  // a pair of tiles
  static constexpr bool kBeside = false;

  Sizes sizes;
  BFloat16 *q, *k, *v;
  RightTiles values;

  static int64_t floats(const AttentionCall& c) {
    return as_floats(kChunk * left_stride(c.D)) + as_floats(right_elements(c.D, kBlockN)) +
           as_floats(right_elements(kBlockN, c.D_v));
  }
  TileForward(float* at, const AttentionCall& c) {
    q = reinterpret_cast<BFloat16*>(at), k = q + kChunk * left_stride(c.D);
    v = k + right_elements(c.D, kBlockN);
  }

  void take_rows(const Group<BFloat16>& g, int64_t first, int64_t count) const {
    const int64_t stride = left_stride(g.c.D);
    g.runs(g.c.q, g.c.q_strides, first, count, [&](const BFloat16* from, int64_t at, int64_t n) {
      copy_rows(from, g.c.q_strides.l, n, g.c.D, q + at * stride, stride);
    });
  }
  void take_keys(const Group<BFloat16>& g, int64_t k0, int64_t n) {
    pack_right_transposed(g.k(k0), g.c.k_strides.l, g.c.D, n, k);
    pack_right(g.v(k0), g.c.v_strides.l, n, g.c.D_v, v);
    values = right_tiles(v, n);
  }
  void scores(const AttentionCall& c, int64_t m0, int64_t m, int64_t n, float* to) const {
    const int64_t stride = left_stride(c.D);
    multiply_tiles<false>(m, c.D, n, left_rows(q + m0 * stride, stride), right_tiles(k, c.D), to, kScoresRow);
  }
  RowOfPowers row_of_powers(int64_t, int64_t) const { return {}; }
  void multiply_values(bool add, const AttentionCall& c, int64_t, int64_t m, int64_t n, float* powers,
                       float* output) const {
    const LeftTiles left = left_rows(reinterpret_cast<BFloat16*>(powers), 2 * kScoresRow);
    const auto multiply = add ? multiply_tiles<true> : multiply_tiles<false>;
    multiply(m, n, c.D_v, left, values, output, padded_stride(c.D_v));
  }
};

// [width][kKeys] -> the first n of [kKeys][padded_stride(width)].
template <int64_t kKeys>
static void transpose_columns(const float* from, int64_t width, int64_t n, float* to) {
  const int64_t stride = padded_stride(width);
  for (int64_t j = 0; j < n; j += kLanes)
    for (int64_t d = 0; d < width; d += kLanes) {
      Vec rows[kLanes];
      for (int i = 0; i < kLanes; ++i) rows[i] = load(from + (d + i) * kKeys + j);
      transpose(rows);
      for (int i = 0; i < kLanes; ++i) store(to + (j + i) * stride + d, rows[i]);
    }
}

// The gradients of k and v are summed transposed: powers and grad_s are then right operands, whose pairs of
// rows need no transposition.
struct TileBackward {
  typedef TileUse Use;
  typedef AnySizes Sizes;
  static constexpr int64_t kRows = 64, kKeys = 64;

  Sizes sizes;
  BFloat16 *q, *grad_output;                                 // [kRows][left_stride]
  BFloat16 *q_columns, *grad_output_columns;                 // transposed, as tiles
  BFloat16 *k, *k_rows, *v, *right;                          // right: of the tile's powers or grad_s
  RightTiles keys;                                           // k_rows
  float *grad_k_columns, *grad_v_columns, *grad_k, *grad_v;  // [whole tiles][kKeys], [kKeys][padded_stride]

  static int64_t left_elements(int64_t width) {
    return kRows * left_stride(width) +
           tiles_of(width, kTileHeight) * tiles_of(kRows, kTileDepth) * kTileElements;
  }
  static int64_t elements(const AttentionCall& c) {
    return left_elements(c.D) + left_elements(c.D_v) + 2 * right_elements(c.D, kKeys) +
           right_elements(kKeys, c.D) + right_elements(c.D_v, kKeys) + right_elements(kRows, kKeys);
  }
  static int64_t floats(const AttentionCall& c) {
    return as_floats(elements(c)) + kKeys * (whole_tiles(c.D, kTileHeight) + whole_tiles(c.D_v, kTileHeight) +
                                             padded_stride(c.D) + padded_stride(c.D_v));
  }
  TileBackward(float* at, const AttentionCall& c) {
    q = reinterpret_cast<BFloat16*>(at), q_columns = q + kRows * left_stride(c.D);
    grad_output = q + left_elements(c.D), grad_output_columns = grad_output + kRows * left_stride(c.D_v);
    k = grad_output + left_elements(c.D_v), k_rows = k + right_elements(c.D, kKeys);
    v = k_rows + right_elements(kKeys, c.D), right = v + right_elements(c.D_v, kKeys);
    grad_k_columns = at + as_floats(elements(c));
    grad_v_columns = grad_k_columns + kKeys * whole_tiles(c.D, kTileHeight);
    grad_k = grad_v_columns + kKeys * whole_tiles(c.D_v, kTileHeight);
    grad_v = grad_k + kKeys * padded_stride(c.D);
  }

  void take_keys(const Group<BFloat16>& g, int64_t k0, int64_t n) const {
    pack_right_transposed(g.k(k0), g.c.k_strides.l, g.c.D, n, k);
    pack_right_transposed(g.v(k0), g.c.v_strides.l, g.c.D_v, n, v);
  }
  void take_rows(const AttentionBackward& args, const Group<BFloat16>& g, int64_t first, int64_t m) const {
    take(g, g.c.q, g.c.q_strides, first, m, g.c.D, q, q_columns);
    take(g, args.grad_output, args.grad_output_strides, first, m, g.c.D_v, grad_output, grad_output_columns);
  }
  void scores(const AttentionCall& c, int64_t m, int64_t n, float* to) const {
    multiply_tiles<false>(m, c.D, n, left_rows(q, left_stride(c.D)), right_tiles(k, c.D), to, kKeys);
  }
  void grad_powers(const AttentionCall& c, int64_t m, int64_t n, float* to) const {
    multiply_tiles<false>(m, c.D_v, n, left_rows(grad_output, left_stride(c.D_v)), right_tiles(v, c.D_v), to,
                          kKeys);
  }

  void begin_gradients(const Group<BFloat16>& g, int64_t k0, int64_t n) {
    pack_right(g.k(k0), g.c.k_strides.l, n, g.c.D, k_rows);
    keys = right_tiles(k_rows, n);
    const int64_t both = kKeys * (whole_tiles(g.c.D, kTileHeight) + whole_tiles(g.c.D_v, kTileHeight));
    for (int64_t i = 0; i < both; i += kLanes) store(grad_k_columns + i, zero());
  }
  void add_gradients(const AttentionCall& c, int64_t m, int64_t n, float* powers, float* grad_s,
                     float* grad_q) const {
    pack_right(powers, kKeys, m, n, right);
    multiply_tiles<true>(c.D_v, m, n, left_tiles(grad_output_columns, m), right_tiles(right, m),
                         grad_v_columns, kKeys);
    pack_right(grad_s, kKeys, m, n, right);
    multiply_tiles<true>(c.D, m, n, left_tiles(q_columns, m), right_tiles(right, m), grad_k_columns, kKeys);
    for (int64_t r = 0; r < m; ++r) narrow_in_place(grad_s + r * kKeys, round_up(n, kLanes));
    const LeftTiles left = left_rows(reinterpret_cast<BFloat16*>(grad_s), 2 * kKeys);
    multiply_tiles<true>(m, n, c.D, left, keys, grad_q, padded_stride(c.D));
  }
  void end_gradients(const AttentionCall& c, int64_t n) const {
    transpose_columns<kKeys>(grad_k_columns, c.D, n, grad_k);
    transpose_columns<kKeys>(grad_v_columns, c.D_v, n, grad_v);
  }

 private:
  // Rows of q or grad_output as they are and transposed.
  static void take(const Group<BFloat16>& g, const void* base, const AttentionStrides& s, int64_t first,
                   int64_t m, int64_t width, BFloat16* rows, BFloat16* columns) {
    const int64_t stride = left_stride(width);
    g.runs(base, s, first, m, [&](const BFloat16* from, int64_t at, int64_t n) {
      copy_rows(from, s.l, n, width, rows + at * stride, stride);
    });
    pack_left_transposed(rows, stride, m, width, columns);
  }
};
