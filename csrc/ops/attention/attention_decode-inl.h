// output = softmax(scores) v and lse for a few query rows a head of k and v: no packing, k and v are read
// once, as they lie. A task takes all rows of one head of k and v and a range of its keys; the results of the
// ranges are then combined in their order, whatever the threads. Saves lse.

constexpr int64_t kFewestKeys = 256;  // of a range

struct DecodeShape {
  int64_t groups, splits, rows;
  int64_t partial;  // floats of the running results of a task
};

static DecodeShape decode_shape(const AttentionCall& c) {
  DecodeShape shape = {c.B * c.H_kv, 1, c.H / c.H_kv * c.max_q, 0};
  shape.partial = shape.rows * (padded_stride(c.D_v) + 2);
  // Tasks for 64 threads; the cut depends on the shape alone, so results do not depend on the threads.
  while (shape.groups * shape.splits < 64 && shape.splits * kFewestKeys < c.max_k) ++shape.splits;
  return shape;
}

FASTDL_INLINE Running decode_results(float* memory, const AttentionCall& c, const DecodeShape& shape,
                                     int64_t task, int64_t row) {
  float* at = memory + task * shape.partial;
  float* highest = at + shape.rows * padded_stride(c.D_v);
  return {at + row * padded_stride(c.D_v), highest + row, highest + shape.rows + row};
}

template <class T>
struct DecodeScratch {
  T* q;               // [rows][D]
  float *scores, *v;  // [rows][kScoresRow]; [kBlockN][padded_stride(D_v)] if D_v is not whole vectors
  uint32_t* words;    // [kBlockN]

  static int64_t floats(const AttentionCall& c, int64_t rows) {
    const int64_t copied = c.D_v % kLanes == 0 ? 0 : padded_stride(c.D_v);
    return round_up(rows * c.D, 16) + (rows + 1) * kScoresRow + copied * kBlockN;
  }
  DecodeScratch(float* at, const AttentionCall& c, int64_t rows) {
    q = reinterpret_cast<T*>(at), scores = at + round_up(rows * c.D, 16);
    words = reinterpret_cast<uint32_t*>(scores + rows * kScoresRow);
    v = scores + (rows + 1) * kScoresRow;
  }
};

// out[rows, width] = powers[rows, kScoresRow] v[keys, width], or added to, width whole vectors. One or two
// rows hold 8 or 4 vectors of sums: fewer would wait for each other.
template <class T>
static void multiply_values(bool add, int64_t rows, const float* powers, const T* v, int64_t v_row,
                            int64_t keys, int64_t width, float* out) {
  const GemmStrides s = {kScoresRow, 1, v_row, padded_stride(width), kLanes};
  const int64_t vecs = (width + kLanes - 1) / kLanes;
  int64_t at = 0;
  if (rows == 1)
    for (; at + 8 <= vecs; at += 8)
      gemm_block<1, 8>(add, powers, v + at * kLanes, out + at * kLanes, keys, s);
  if (rows <= 2)
    for (; at + 4 <= vecs; at += 4)
      gemm_block_of<2, 4>(add, rows, powers, v + at * kLanes, out + at * kLanes, keys, s);
  for (; at < vecs; at += kGemmVecs)
    gemm(add, rows, vectors_from(at * kLanes, width), powers, v + at * kLanes, out + at * kLanes, keys, s);
}

// All rows of a group against keys begin .. end, begin a multiple of kBlockN.
template <class T>
static void decode_keys(const Group<T>& g, int64_t begin, int64_t end, const DecodeShape& shape, bool sink,
                        float* partials, int64_t task, const DecodeScratch<T>& scratch) {
  const AttentionCall& c = g.c;
  const int64_t rows = g.rows();
  const Running all = decode_results(partials, c, shape, task, 0);
  if (begin >= end)
    for (int64_t i = 0; i < rows * padded_stride(c.D_v); i += kLanes) store(all.output + i, zero());
  for (int64_t r = 0; r < rows; ++r) {
    const QueryRow row = g.row(r);
    begin_row({nullptr, all.highest + r, all.total + r}, sink ? c.sink + row.h : nullptr);
    std::memcpy(scratch.q + r * c.D, g.at(c.q, c.q_strides, row.h, g.span.q_first + row.i),
                static_cast<size_t>(c.D) * sizeof(T));
  }
  for (int64_t k0 = begin; k0 < end; k0 += kBlockN) {
    const int64_t n = end - k0 < kBlockN ? end - k0 : kBlockN;
    dot_product(false, rows, n, scratch.q, c.D, g.k(k0), c.k_strides.l, c.D, scratch.scores, kScoresRow);
    const bool add = k0 > begin;
    OnlineSoftmax<T, FloatsInPlace>(g, {0, rows, k0, n, add}, scratch.scores, scratch.words, all, {})
        .finish();
    if (c.D_v % kLanes == 0) {
      multiply_values(add, rows, scratch.scores, g.v(k0), c.v_strides.l, n, c.D_v, all.output);
    } else {
      widen_rows(g.v(k0), c.v_strides.l, n, c.D_v, scratch.v);
      multiply_values(add, rows, scratch.scores, scratch.v, padded_stride(c.D_v), n, c.D_v, all.output);
    }
  }
}

// The running results of two ranges of keys -> `into`.
FASTDL_INLINE void combine_results(const Running& into, const Running& from, int64_t width) {
  const float highest = *from.highest > *into.highest ? *from.highest : *into.highest;
  const float reference = highest == kHidden ? 0.0f : highest;
  const float into_factor = std::exp2(*into.highest - reference),
              from_factor = std::exp2(*from.highest - reference);
  *into.total = *into.total * into_factor + *from.total * from_factor;
  *into.highest = highest;
  const Vec a = set1(into_factor), b = set1(from_factor);
  for (int64_t d = 0; d < width; d += kLanes)
    store(into.output + d, load(into.output + d) * a + load(from.output + d) * b);
}

template <class T>
static void decode(const AttentionForward& args, const ThreadPool& pool) {
  const AttentionCall& c = args.c;
  const DecodeShape shape = decode_shape(c);
  const int64_t tasks = shape.groups * shape.splits,
                floats = round_up(DecodeScratch<T>::floats(c, shape.rows), 16);
  const int64_t workers = tasks < pool.size() ? tasks : pool.size();
  float* memory = static_cast<float*>(
      thread_scratch(static_cast<size_t>(workers * floats + tasks * shape.partial) * sizeof(float)));
  float* partials = memory + workers * floats;
  const auto group_of = [&](int64_t group) {
    return Group<T>(c, attention_span(c, group / c.H_kv), group % c.H_kv);
  };
  const auto finish = [&](const Group<T>& g, int64_t group) {
    for (int64_t r = 0; r < g.rows(); ++r) {
      const Running sum = decode_results(partials, c, shape, group * shape.splits, r);
      for (int64_t split = 1; split < shape.splits; ++split)
        combine_results(sum, decode_results(partials, c, shape, group * shape.splits + split, r),
                        padded_stride(c.D_v));
      finish_row(args, g, g.row(r), sum.output, *sum.total);
    }
    const Running all = decode_results(partials, c, shape, group * shape.splits, 0);
    store_lse(args, g, 0, g.rows(), all.highest, all.total);
  };
  parallel_tasks(pool, tasks, [&](int64_t task, int64_t worker) {
    const int64_t split = task % shape.splits;
    const Group<T> g = group_of(task / shape.splits);
    const KeyRange keys = g.keys(0, g.rows());
    const int64_t from = keys.first / kBlockN * kBlockN;
    const int64_t blocks = (keys.end - from + kBlockN - 1) / kBlockN;
    const int64_t share = (blocks + shape.splits - 1) / shape.splits * kBlockN;
    const int64_t begin = from + split * share, end = begin + share < keys.end ? begin + share : keys.end;
    const DecodeScratch<T> scratch(memory + worker * floats, c, shape.rows);
    decode_keys(g, begin, end, shape, split == 0 && c.sink != nullptr, partials, task, scratch);
    if (shape.splits == 1) finish(g, task);
  });
  if (shape.splits > 1)
    parallel_tasks(pool, shape.groups, [&](int64_t group, int64_t) { finish(group_of(group), group); });
}
