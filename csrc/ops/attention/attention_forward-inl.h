// output = softmax(scores) v and lse, without the scores in memory: online softmax over blocks of keys.
// A task takes kChunk query rows of the heads that share a head of k and v: each block of keys is packed once
// for them, then tiles of kBlockM rows run product, softmax, product. Saves lse.

// Running results of a chunk's rows: output before the division, [rows][padded_stride(D_v)], maximum and sum.
struct Running {
  float *output, *highest, *total;
};

// One row of scores -> powers against the new maximum; the row's results are scaled to it. False: nothing is
// seen.
template <class T>
static bool online_softmax(const Group<T>& g, const QueryRow& row, int64_t first, int64_t count, bool plain,
                           float* s, uint32_t* words, const Running& now) {
  const int64_t padded = round_up(count, kLanes);
  const KeyRange seen = within(row.keys, first, count);
  if (seen.first == seen.end) {
    for (int64_t j = 0; j < padded; j += kLanes) store(s + j, zero());
    return false;
  }
  scale_scores(g.c, count, s);
  if (g.c.softcap != 0) cap_scores(g.c, count, s, nullptr);
  if (!plain) show_scores(g, row, first, count, s);
  for (int64_t j = 0; j < seen.first; ++j) s[j] = kHidden;
  for (int64_t j = seen.end; j < padded; ++j) s[j] = kHidden;
  Vec best = set1(kHidden);
  for (int64_t j = 0; j < padded; j += kLanes) best = max(load(s + j), best);
  const float before = *now.highest, top = max_of(best), highest = top > before ? top : before;
  const float reference = highest == kHidden ? 0.0f : highest;
  const Vec shift = set1(reference);
  Vec sum = zero();
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Vec power = exp(load(s + j) - shift);
    sum += power;
    store(s + j, power);
  }
  if (highest != before) {
    const float factor = std::exp(before - reference);
    *now.total *= factor;
    const Vec scale = set1(factor);
    for (int64_t d = 0; d < padded_stride(g.c.D_v); d += kLanes)
      store(now.output + d, load(now.output + d) * scale);
  }
  *now.highest = highest;
  *now.total += sum_of(sum);
  if (g.c.dropout_p > 0) drop(g.c, g.span.number, row, first, count, words, s);
  return true;
}

struct ForwardScratch {
  float *q, *k, *v, *scores, *output, *highest, *total;
  uint32_t* words;

  static int64_t floats(const AttentionCall& c) {
    return kChunk * (padded_stride(c.D) + padded_stride(c.D_v) + 2) + kBlockN * (c.D + padded_stride(c.D_v)) +
           (kBlockM + 1) * kBlockN;
  }
  ForwardScratch(float* at, const AttentionCall& c) {
    q = at, output = q + kChunk * padded_stride(c.D);
    highest = output + kChunk * padded_stride(c.D_v), total = highest + kChunk;
    k = total + kChunk, v = k + kBlockN * c.D;
    scores = v + kBlockN * padded_stride(c.D_v);
    words = reinterpret_cast<uint32_t*>(scores + kBlockM * kBlockN);
  }
};

// Query rows first .. first + count of a group.
template <class T>
static void forward_chunk(const AttentionForward& args, const Group<T>& g, int64_t first, int64_t count,
                          const ForwardScratch& scratch) {
  const AttentionCall& c = args.c;
  const int64_t q_stride = padded_stride(c.D), o_stride = padded_stride(c.D_v);
  const bool plain = g.plain();
  g.widen(c.q, c.q_strides, first, count, c.D, scratch.q);
  for (int64_t i = 0; i < count * o_stride; i += kLanes) store(scratch.output + i, zero());
  for (int64_t r = 0; r < count; ++r) {
    const bool sink = c.sink != nullptr;
    scratch.highest[r] = sink ? c.sink[g.row(first + r).h] : kHidden;
    scratch.total[r] = sink ? 1.0f : 0.0f;
  }
  const KeyRange keys = g.keys(first, count);
  for (int64_t k0 = keys.first / kBlockN * kBlockN; k0 < keys.end; k0 += kBlockN) {
    const int64_t n = keys.end - k0 < kBlockN ? keys.end - k0 : kBlockN;
    pack_transposed(g.k(k0), c.k_strides.l, n, c.D, scratch.k);
    widen_rows(g.v(k0), c.v_strides.l, n, c.D_v, scratch.v);
    for (int64_t m0 = 0; m0 < count; m0 += kBlockM) {
      const int64_t m = count - m0 < kBlockM ? count - m0 : kBlockM;
      const KeyRange seen = within(g.keys(first + m0, m), k0, n);
      if (seen.first == seen.end) continue;
      multiply_transposed(scratch.q + m0 * q_stride, m, scratch.k, n, c.D, scratch.scores, kBlockN);
      for (int64_t r = m0; r < m0 + m; ++r)
        online_softmax(g, g.row(first + r), k0, n, plain, scratch.scores + (r - m0) * kBlockN, scratch.words,
                       {scratch.output + r * o_stride, scratch.highest + r, scratch.total + r});
      multiply_add(scratch.scores, kBlockN, 1, m, scratch.v, n, c.D_v, scratch.output + m0 * o_stride);
    }
  }
}

// The running results of a row -> output and lse.
template <class T>
static void finish_row(const AttentionForward& args, const Group<T>& g, const QueryRow& row,
                       const float* output, float highest, float total) {
  const AttentionCall& c = args.c;
  const int64_t query = g.span.q_first + row.i;
  const bool packed = c.cu_seqlens_q != nullptr;
  const int64_t at = packed ? query * c.H + row.h : (g.span.number * c.H + row.h) * c.L_q + query;
  args.lse[packed ? row.h * c.L_q + query : at] =
      total == 0 ? kHidden : (highest == kHidden ? 0.0 : highest) + std::log(static_cast<double>(total));
  T* out = static_cast<T*>(args.output) + at * c.D_v;
  const Vec inverse = set1(total == 0 ? 0.0f : 1.0f / total);
  int64_t d = 0;
  for (; d + kLanes <= c.D_v; d += kLanes) store(out + d, load(output + d) * inverse);
  if (d < c.D_v) store_first(out + d, load(output + d) * inverse, static_cast<int>(c.D_v - d));
}

template <class T>
static void forward(const AttentionForward& args, const ThreadPool& pool) {
  const AttentionCall& c = args.c;
  const int64_t chunks = (c.H / c.H_kv * c.max_q + kChunk - 1) / kChunk;
  const int64_t tasks = c.B * c.H_kv * chunks, floats = round_up(ForwardScratch::floats(c), 16);
  const int64_t workers = tasks < pool.size() ? tasks : pool.size();
  float* memory = static_cast<float*>(thread_scratch(static_cast<size_t>(workers * floats) * sizeof(float)));
  parallel_tasks(pool, tasks, [&](int64_t task, int64_t worker) {
    // The last chunks of a causal call see the most keys: they go first.
    const int64_t chunk = chunks - 1 - task / (c.B * c.H_kv), group = task % (c.B * c.H_kv);
    const Group<T> g(c, attention_span(c, group / c.H_kv), group % c.H_kv);
    const int64_t first = chunk * kChunk, left = g.rows() - first;
    if (left <= 0) return;
    const int64_t count = left < kChunk ? left : kChunk;
    const ForwardScratch scratch(memory + worker * floats, c);
    forward_chunk(args, g, first, count, scratch);
    for (int64_t r = 0; r < count; ++r)
      finish_row(args, g, g.row(first + r), scratch.output + r * padded_stride(c.D_v), scratch.highest[r],
                 scratch.total[r]);
  });
}
