// output = softmax(scores) v and lse, without the scores in memory: online softmax over blocks of keys.
// A task takes up to kChunk query rows of the heads that share a head of k and v: each block of keys is
// packed once for them, then tiles of some rows run product, softmax, product. Saves lse.

template <class Products>
struct ForwardScratch {
  Products products;
  float *scores, *output, *highest, *total;
  uint32_t* words;

  static int64_t floats(const AttentionCall& c) {
    return Products::floats(c) + kChunk * (padded_stride(c.D_v) + 2) + (Products::kRows + 1) * kScoresRow;
  }
  ForwardScratch(float* at, const AttentionCall& c) : products(at, c) {
    output = at + Products::floats(c), highest = output + kChunk * padded_stride(c.D_v);
    total = highest + kChunk, scores = total + kChunk;
    words = reinterpret_cast<uint32_t*>(scores + Products::kRows * kScoresRow);
  }
};

// Query rows first .. first + count of a group.
template <class T, class Products>
static void forward_chunk(const AttentionForward& args, const Group<T>& g, int64_t first, int64_t count,
                          ForwardScratch<Products>& scratch) {
  static_assert(Products::kRows <= kMostRows, "online_softmax takes a tile at once");
  const AttentionCall& c = args.c;
  Products& products = scratch.products;
  const int64_t o_stride = padded_stride(c.D_v);
  products.take_rows(g, first, count);
  bool begun[kChunk / Products::kRows] = {};  // tiles, by a block of keys
  for (int64_t r = 0; r < count; ++r) {
    const float* const sink = c.sink == nullptr ? nullptr : c.sink + g.row(first + r).h;
    begin_row({nullptr, scratch.highest + r, scratch.total + r}, sink);
  }
  const KeyRange keys = g.keys(first, count);
  for (int64_t k0 = keys.first / kBlockN * kBlockN; k0 < keys.end; k0 += kBlockN) {
    const int64_t n = keys.end - k0 < kBlockN ? keys.end - k0 : kBlockN;
    products.take_keys(g, k0, n);
    for (int64_t m0 = 0; m0 < count; m0 += Products::kRows) {
      const int64_t m = count - m0 < Products::kRows ? count - m0 : Products::kRows;
      const KeyRange seen = within(g.keys(first + m0, m), k0, n);
      if (seen.first == seen.end) continue;
      bool& add = begun[m0 / Products::kRows];
      products.scores(c, m0, m, n, scratch.scores);
      online_softmax<Products::kNarrowed>(
          g, first + m0, m, k0, n, add, scratch.scores, scratch.words,
          {scratch.output + m0 * o_stride, scratch.highest + m0, scratch.total + m0});
      products.multiply_values(add, c, m, n, scratch.scores, scratch.output + m0 * o_stride);
      add = true;
    }
  }
  for (int64_t r = 0; r < count; ++r)
    if (!begun[r / Products::kRows])
      for (int64_t d = 0; d < o_stride; d += kLanes) store(scratch.output + r * o_stride + d, zero());
}

// Query rows of a task: a chunk of whole tiles, smaller where all chunks together would leave threads idle.
// No sum crosses rows.
template <class Products>
static int64_t rows_of_task(int64_t groups, int64_t rows, int64_t threads) {
  const int64_t even = round_up(groups * rows / (2 * threads), Products::kRows);
  return even < Products::kRows ? Products::kRows : even < kChunk ? even : kChunk;
}

template <class T, class Products = VectorForward<T>>
static void forward(const AttentionForward& args, const ThreadPool& pool) {
  const AttentionCall& c = args.c;
  if (c.decode) return decode<T>(args, pool);
  const int64_t most_rows = c.H / c.H_kv * c.max_q;
  const int64_t share = rows_of_task<Products>(c.B * c.H_kv, most_rows, pool.size());
  const int64_t chunks = (most_rows + share - 1) / share;
  const int64_t tasks = c.B * c.H_kv * chunks, floats = round_up(ForwardScratch<Products>::floats(c), 16);
  const int64_t workers = tasks < pool.size() ? tasks : pool.size();
  float* memory = static_cast<float*>(thread_scratch(static_cast<size_t>(workers * floats) * sizeof(float)));
  parallel_tasks(pool, tasks, [&](int64_t task, int64_t worker) {
    // The last chunks of a causal call see the most keys: they go first.
    const int64_t chunk = chunks - 1 - task / (c.B * c.H_kv), group = task % (c.B * c.H_kv);
    const Group<T> g(c, attention_span(c, group / c.H_kv), group % c.H_kv);
    const int64_t first = chunk * share, left = g.rows() - first;
    if (left <= 0) return;
    const int64_t count = left < share ? left : share;
    [[maybe_unused]] const typename Products::Use use;
    ForwardScratch<Products> scratch(memory + worker * floats, c);
    forward_chunk(args, g, first, count, scratch);
    for (int64_t r = 0; r < count; ++r)
      finish_row(args, g, g.row(first + r), scratch.output + r * padded_stride(c.D_v), scratch.total[r]);
    store_lse(args, g, first, count, scratch.highest, scratch.total);
  });
}
