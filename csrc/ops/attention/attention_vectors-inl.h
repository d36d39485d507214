// The products of attention on vectors: operands in fp32, where they lie or in scratch. forward and backward
// take them, or those of attention_bf16-inl.h or attention_split-inl.h, as a parameter. One thread. Saves
// nothing. Included by foreach_isa.h: no include guard.

// What a thread must hold while it multiplies: nothing.
struct NoUse {
  NoUse() {}
};

// The sizes of the numbers that were taken: vectors multiply any.
struct AnySizes {
  void widen_by(const AnySizes&) {}
  bool fit(const AttentionCall&) const { return true; }
};

template <class T>
struct VectorForward {
  typedef NoUse Use;
  typedef AnySizes Sizes;
  typedef FloatsInPlace RowOfPowers;
  static constexpr int64_t kRows = kBlockM;
  static constexpr bool kBeside = false;  // whether products and softmax compute at once

  Sizes sizes;
  float *rows, *k, *values;  // rows, values: room for q and v
  RowsAt q, v;

  static int64_t floats(const AttentionCall& c) {
    return kChunk * padded_stride(c.D) + kBlockN * (c.D + padded_stride(c.D_v));
  }
  VectorForward(float* at, const AttentionCall& c) {
    rows = at, k = rows + kChunk * padded_stride(c.D), values = k + kBlockN * c.D;
  }

  void take_rows(const Group<T>& g, int64_t first, int64_t count) {
    q = g.rows_at(g.c.q, g.c.q_strides, first, count, g.c.D, false, rows);
  }
  void take_keys(const Group<T>& g, int64_t k0, int64_t n) {
    pack_transposed(g.k(k0), g.c.k_strides.l, n, g.c.D, k);
    v = rows_in_place(g.v(k0), g.c.v_strides.l, n, g.c.D_v, true, values);
  }
  // Rows m0 .. m0 + m of those taken, n keys: [kRows][kScoresRow].
  void scores(const AttentionCall& c, int64_t m0, int64_t m, int64_t n, float* to) const {
    multiply_transposed({q.at + m0 * q.stride, q.stride}, m, k, n, c.D, to, kScoresRow);
  }
  // Where the powers of a block's tile t, of n keys, are put for the product.
  RowOfPowers row_of_powers(int64_t, int64_t) const { return {}; }
  // output = powers of tile t times v, or added to. The powers are lost.
  void multiply_values(bool add, const AttentionCall& c, int64_t, int64_t m, int64_t n, float* powers,
                       float* output) const {
    multiply(add, powers, kScoresRow, 1, m, v, n, c.D_v, output);
  }
};

// Of the tile of m query rows and n keys that were taken: [kRows][kKeys].
template <class T>
struct VectorBackward {
  typedef NoUse Use;
  typedef AnySizes Sizes;
  static constexpr int64_t kRows = kBlockM;
  static constexpr int64_t kKeys = 64;  // two tiles of 48 x 64 floats stay in 32 KB

  Sizes sizes;
  float *queries, *gradients, *keys;  // room for q, grad_output and k_rows
  float *k, *v;                       // packed transposed
  float *grad_k, *grad_v;             // [kKeys][padded_stride]
  RowsAt q, grad_output, k_rows;

  static int64_t floats(const AttentionCall& c) {
    const int64_t D = padded_stride(c.D), D_v = padded_stride(c.D_v);
    return kRows * (D + D_v) + kKeys * (c.D + c.D_v + 2 * D + D_v);
  }
  VectorBackward(float* at, const AttentionCall& c) {
    const int64_t D = padded_stride(c.D), D_v = padded_stride(c.D_v);
    queries = at, gradients = queries + kRows * D, keys = gradients + kRows * D_v, grad_k = keys + kKeys * D;
    grad_v = grad_k + kKeys * D, k = grad_v + kKeys * D_v, v = k + kKeys * c.D;
  }

  void take_keys(const Group<T>& g, int64_t k0, int64_t n) const {
    pack_transposed(g.k(k0), g.c.k_strides.l, n, g.c.D, k);
    pack_transposed(g.v(k0), g.c.v_strides.l, n, g.c.D_v, v);
  }
  void take_rows(const AttentionBackward& args, const Group<T>& g, int64_t first, int64_t m) {
    q = g.rows_at(g.c.q, g.c.q_strides, first, m, g.c.D, true, queries);
    grad_output = g.rows_at(args.grad_output, args.grad_output_strides, first, m, g.c.D_v, true, gradients);
  }
  void scores(const AttentionCall& c, int64_t m, int64_t n, float* to) const {
    multiply_transposed(q, m, k, n, c.D, to, kKeys);
  }
  void grad_powers(const AttentionCall& c, int64_t m, int64_t n, float* to) const {
    multiply_transposed(grad_output, m, v, n, c.D_v, to, kKeys);
  }

  // The gradients of n keys: begun, summed over tiles of rows, then found in grad_k and grad_v.
  void begin_gradients(const Group<T>& g, int64_t k0, int64_t n) {
    k_rows = rows_in_place(g.k(k0), g.c.k_strides.l, n, g.c.D, true, keys);
    for (int64_t i = 0; i < n * padded_stride(g.c.D); i += kLanes) store(grad_k + i, zero());
    for (int64_t i = 0; i < n * padded_stride(g.c.D_v); i += kLanes) store(grad_v + i, zero());
  }
  // Lost: powers and grad_s. grad_q: the rows' own, added to.
  void add_gradients(const AttentionCall& c, int64_t m, int64_t n, float* powers, float* grad_s,
                     float* grad_q) const {
    multiply(true, powers, 1, kKeys, n, grad_output, m, c.D_v, grad_v);
    multiply(true, grad_s, 1, kKeys, n, q, m, c.D, grad_k);
    multiply(true, grad_s, kKeys, 1, m, k_rows, n, c.D, grad_q);
  }
  void end_gradients(const AttentionCall&, int64_t) const {}
};
