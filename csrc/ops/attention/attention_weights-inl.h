// weights = softmax(scores), or their mean over the heads, and output = softmax(scores) v.
// A task takes some query rows of a sequence, all keys, and all heads, one after the other: no sum depends on
// the threads. Saves nothing.

// Rows of a task: whole register blocks of gemm whose scores stay in a core's cache.
static int64_t rows_of_weights(int64_t stride) {
  constexpr int64_t kMost = 65536, kFewest = 6;
  const int64_t rows = kMost / stride / kFewest * kFewest;
  return rows < kFewest ? kFewest : rows < kBlockM ? rows : kBlockM;
}

struct WeightsScratch {
  VectorForward<float> products;
  float* output;  // [kBlockM][padded_stride(D_v)]
  float* scores;  // [rows_of_weights][stride]

  static int64_t floats(const AttentionCall& c, int64_t stride) {
    return VectorForward<float>::floats(c) + kBlockM * padded_stride(c.D_v) +
           rows_of_weights(stride) * stride;
  }
  WeightsScratch(float* at, const AttentionCall& c) : products(at, c) {
    output = at + VectorForward<float>::floats(c), scores = output + kBlockM * padded_stride(c.D_v);
  }
};

// The products of a row with all keys -> its weights; times `factor` they are put in place or added to what
// is there.
static void weigh_row(const Group<float>& g, const QueryRow& row, float factor, bool add, float* scores,
                      float* weights) {
  const int64_t count = g.c.L_k;
  finish_scores(g, row, 0, count, scores, nullptr);
  Vec best = set1(kHidden), sum = zero();
  for (int64_t j = 0; j < count; j += kLanes) best = max(load(scores + j), best);
  const float highest = max_of(best);
  const Vec shift = set1(highest == kHidden ? 0.0f : highest);
  for (int64_t j = 0; j < count; j += kLanes) {
    const Vec power = exp_or_zero(load(scores + j) - shift);
    sum += power;
    store(scores + j, power);
  }
  const Vec scale = set1(highest == kHidden ? 0.0f : 1.0f / sum_of(sum)), share = set1(factor);
  for (int64_t j = 0; j < count; j += kLanes) {
    const int n = static_cast<int>(count - j < kLanes ? count - j : kLanes);
    Vec weight = load(scores + j) * scale;
    store(scores + j, weight);
    weight *= share;
    if (add) weight += n == kLanes ? load(weights + j) : load_first(weights + j, n);
    if (n == kLanes)
      store(weights + j, weight);
    else
      store_first(weights + j, weight, n);
  }
}

// Rows first .. first + m of one head.
static void weigh_head(const AttentionWeights& args, const Group<float>& g, int64_t first, int64_t m,
                       int64_t stride, WeightsScratch& scratch) {
  const AttentionCall& c = g.c;
  VectorForward<float>& products = scratch.products;
  const int64_t h = g.h_kv, head = args.averaged ? g.span.b : g.span.b * c.H + h;
  products.take_rows(g, first, m);
  for (int64_t k0 = 0; k0 < c.L_k; k0 += kBlockN) {
    const int64_t n = c.L_k - k0 < kBlockN ? c.L_k - k0 : kBlockN;
    pack_transposed(g.k(k0), c.k_strides.l, n, c.D, products.k);
    multiply_transposed(products.q, m, products.k, n, c.D, scratch.scores + k0, stride);
  }
  const float factor = args.averaged ? 1.0f / static_cast<float>(c.H) : 1.0f;
  float* weights = args.weights + (head * c.L_q + first) * c.L_k;
  for (int64_t r = 0; r < m; ++r)
    weigh_row(g, g.row(first + r), factor, args.averaged && h > 0, scratch.scores + r * stride,
              weights + r * c.L_k);
  const int64_t o_stride = padded_stride(c.D_v);
  for (int64_t i = 0; i < m * o_stride; i += kLanes) store(scratch.output + i, zero());
  for (int64_t k0 = 0; k0 < c.L_k; k0 += kBlockN) {
    const int64_t n = c.L_k - k0 < kBlockN ? c.L_k - k0 : kBlockN;
    const RowsAt v = rows_in_place(g.v(k0), c.v_strides.l, n, c.D_v, true, products.values);
    multiply(true, scratch.scores + k0, stride, 1, m, v, n, c.D_v, scratch.output);
  }
  for (int64_t r = 0; r < m; ++r)
    finish_row(args.forward, g, g.row(first + r), scratch.output + r * o_stride, 1.0f);
}

static void weigh(const AttentionWeights& args, const ThreadPool& pool) {
  const AttentionCall& c = args.forward.c;
  const int64_t stride = round_up(c.L_k > 0 ? c.L_k : 1, kBlockN), share = rows_of_weights(stride);
  const int64_t chunks = (c.L_q + share - 1) / share, tasks = c.B * chunks;
  const int64_t floats = round_up(WeightsScratch::floats(c, stride), 16);
  const int64_t workers = tasks < pool.size() ? tasks : pool.size();
  float* memory = static_cast<float*>(thread_scratch(static_cast<size_t>(workers * floats) * sizeof(float)));
  parallel_tasks(pool, tasks, [&](int64_t task, int64_t worker) {
    WeightsScratch scratch(memory + worker * floats, c);
    const AttentionSpan span = attention_span(c, task / chunks);
    const int64_t first = task % chunks * share, left = c.L_q - first;
    for (int64_t h = 0; h < c.H; ++h)
      weigh_head(args, Group<float>(c, span, h), first, left < share ? left : share, stride, scratch);
  });
}
