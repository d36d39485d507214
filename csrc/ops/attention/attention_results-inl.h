// The running results of a query row while its keys are taken block by block, and what is made of them. One
// thread. Saves lse. Included by foreach_isa.h: no include guard.

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
  Vec best = set1(kHidden);
  if (plain && g.c.softcap == 0 && seen.end - seen.first == padded) {
    const Vec scale = set1(g.c.scale);
    for (int64_t j = 0; j < padded; j += kLanes) {
      const Vec score = load(s + j) * scale;
      best = max(score, best);
      store(s + j, score);
    }
  } else {
    finish_scores(g, row, first, count, s, nullptr);
    for (int64_t j = 0; j < padded; j += kLanes) best = max(load(s + j), best);
  }
  const float before = *now.highest, top = max_of(best), highest = top > before ? top : before;
  const float reference = highest == kHidden ? 0.0f : highest;
  const Vec shift = set1(reference);
  Vec sum = zero();
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Vec power = exp_or_zero(load(s + j) - shift);
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

// The running results of a row -> output and lse.
template <class T>
static void finish_row(const AttentionForward& args, const Group<T>& g, const QueryRow& row,
                       const float* output, float highest, float total) {
  const AttentionCall& c = args.c;
  if (args.lse != nullptr)
    args.lse[lse_index(c, g.span, row.h, row.i)] =
        total == 0 ? kHidden : (highest == kHidden ? 0.0 : highest) + std::log(static_cast<double>(total));
  T* out = const_cast<T*>(g.at(args.output, args.output_strides, row.h, g.span.q_first + row.i));
  const Vec inverse = set1(total == 0 ? 0.0f : 1.0f / total);
  int64_t d = 0;
  for (; d + kLanes <= c.D_v; d += kLanes) store(out + d, load(output + d) * inverse);
  if (d < c.D_v) store_first(out + d, load(output + d) * inverse, static_cast<int>(c.D_v - d));
}
