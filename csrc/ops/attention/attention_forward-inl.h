// output = softmax(scores) v and lse, without the scores in memory: online softmax over blocks of keys.
// A task takes up to kChunk query rows of the heads that share a head of k and v: each block of keys is
// packed once for them, then tiles of some rows run product, softmax, product. Saves lse.

template <class Products>
struct ForwardScratch {
  static constexpr int64_t kScores = Products::kRows * kScoresRow, kTiles = Products::kBeside ? 2 : 1;

  Products products;
  float *scores, *output, *highest, *total;
  uint32_t* words;

  static int64_t floats(const AttentionCall& c) {
    return Products::floats(c) + kChunk * (padded_stride(c.D_v) + 2) + kTiles * kScores + kScoresRow;
  }
  ForwardScratch(float* at, const AttentionCall& c) : products(at, c) {
    output = at + Products::floats(c), highest = output + kChunk * padded_stride(c.D_v);
    total = highest + kChunk, scores = total + kChunk;
    words = reinterpret_cast<uint32_t*>(scores + kTiles * kScores);
  }
  Running running(const AttentionCall& c, int64_t row) const {
    return {output + row * padded_stride(c.D_v), highest + row, total + row};
  }
};

// Rows m0 .. m0 + m of a chunk that see some of the first n keys of a block.
struct ForwardTile {
  int64_t m0, m, n;
  bool begun;  // by a block before
};

// Tiles of a chunk against a block of keys, which begins at k0 and has been taken.
template <class T, class Products>
static void forward_tiles(const Group<T>& g, int64_t first, int64_t k0, const ForwardTile* tiles,
                          int64_t count, ForwardScratch<Products>& scratch) {
  typedef OnlineSoftmax<T, typename Products::RowOfPowers> Softmax;
  const AttentionCall& c = g.c;
  const auto scores_of = [&](int64_t t) { return scratch.scores + t % scratch.kTiles * scratch.kScores; };
  const auto softmax_of = [&](int64_t t) {
    const ForwardTile& tile = tiles[t];
    return Softmax(g, {first + tile.m0, tile.m, k0, tile.n, tile.begun}, scores_of(t), scratch.words,
                   scratch.running(c, tile.m0), scratch.products.row_of_powers(t, tile.n));
  };
  const auto multiply_keys = [&](int64_t t, auto&&... beside) {
    const ForwardTile& tile = tiles[t];
    scratch.products.scores(c, tile.m0, tile.m, tile.n, scores_of(t), beside...);
  };
  const auto multiply_values = [&](int64_t t, auto&&... beside) {
    const ForwardTile& tile = tiles[t];
    scratch.products.multiply_values(tile.begun, c, t, tile.m, tile.n, scores_of(t),
                                     scratch.running(c, tile.m0).output, beside...);
  };
  if constexpr (Products::kBeside) {
    // The last product of the tile before and the first one of the next, beside the softmax of a tile.
    if (count > 0) multiply_keys(0);
    for (int64_t t = 0; t < count; ++t) {
      Softmax softmax = softmax_of(t);
      if (t > 0) multiply_values(t - 1, softmax);
      if (t + 1 < count) multiply_keys(t + 1, softmax);
      softmax.finish();
    }
    if (count > 0) multiply_values(count - 1);
  } else {
    for (int64_t t = 0; t < count; ++t) {
      multiply_keys(t);
      softmax_of(t).finish();
      multiply_values(t);
    }
  }
}

// Query rows first .. first + count of a group.
template <class T, class Products>
static void forward_chunk(const AttentionForward& args, const Group<T>& g, int64_t first, int64_t count,
                          ForwardScratch<Products>& scratch) {
  static_assert(Products::kRows <= kMostRows, "a softmax takes a tile at once");
  constexpr int64_t kRows = Products::kRows;
  const AttentionCall& c = args.c;
  const int64_t o_stride = padded_stride(c.D_v);
  scratch.products.take_rows(g, first, count);
  bool begun[kChunk / kRows] = {};  // tiles, by a block of keys
  for (int64_t r = 0; r < count; ++r)
    begin_row(scratch.running(c, r), c.sink == nullptr ? nullptr : c.sink + g.row(first + r).h);
  const KeyRange keys = g.keys(first, count);
  for (int64_t k0 = keys.first / kBlockN * kBlockN; k0 < keys.end; k0 += kBlockN) {
    const int64_t n = keys.end - k0 < kBlockN ? keys.end - k0 : kBlockN;
    scratch.products.take_keys(g, k0, n);
    ForwardTile tiles[kChunk / kRows];
    int64_t seeing = 0;
    for (int64_t m0 = 0; m0 < count; m0 += kRows) {
      const int64_t m = count - m0 < kRows ? count - m0 : kRows;
      const KeyRange seen = within(g.keys(first + m0, m), k0, n);
      if (seen.first == seen.end) continue;
      // What comes before the first key is hidden instead.
      tiles[seeing++] = {m0, m, seen.end, begun[m0 / kRows]};
      begun[m0 / kRows] = true;
    }
    forward_tiles(g, first, k0, tiles, seeing, scratch);
  }
  for (int64_t r = 0; r < count; ++r)
    if (!begun[r / kRows])
      for (int64_t d = 0; d < o_stride; d += kLanes) store(scratch.output + r * o_stride + d, zero());
}

// Query rows of a task: a chunk of whole tiles, smaller where all chunks together would leave threads idle.
// No sum crosses rows.
template <class Products>
static int64_t rows_of_task(int64_t groups, int64_t rows, int64_t threads) {
  const int64_t even = round_up(groups * rows / (2 * threads), Products::kRows);
  return even < Products::kRows ? Products::kRows : even < kChunk ? even : kChunk;
}

// False: a number does not fit the products, all is to be computed again.
template <class T, class Products>
static bool forward_by(const AttentionForward& args, const ThreadPool& pool) {
  const AttentionCall& c = args.c;
  const int64_t most_rows = c.H / c.H_kv * c.max_q;
  const int64_t share = rows_of_task<Products>(c.B * c.H_kv, most_rows, pool.size());
  const int64_t chunks = (most_rows + share - 1) / share;
  const int64_t tasks = c.B * c.H_kv * chunks, floats = round_up(ForwardScratch<Products>::floats(c), 16);
  const int64_t workers = tasks < pool.size() ? tasks : pool.size();
  typedef typename Products::Sizes Sizes;
  float* memory = static_cast<float*>(thread_scratch(static_cast<size_t>(workers * floats) * sizeof(float) +
                                                     static_cast<size_t>(workers) * sizeof(Sizes)));
  Sizes* const sizes = reinterpret_cast<Sizes*>(memory + workers * floats);
  for (int64_t worker = 0; worker < workers; ++worker) sizes[worker] = {};
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
    sizes[worker].widen_by(scratch.products.sizes);
    for (int64_t r = 0; r < count; ++r)
      finish_row(args, g, g.row(first + r), scratch.output + r * padded_stride(c.D_v), scratch.total[r]);
    store_lse(args, g, first, count, scratch.highest, scratch.total);
  });
  Sizes all = {};
  for (int64_t worker = 0; worker < workers; ++worker) all.widen_by(sizes[worker]);
  return all.fit(c);
}

template <class T, class Products = VectorForward<T>>
static void forward(const AttentionForward& args, const ThreadPool& pool) {
  args.c.decode ? decode<T>(args, pool) : static_cast<void>(forward_by<T, Products>(args, pool));
}
