// What happens to a row of scores between the two products: softcap, bias, ALiBi, mask, causality, window,
// dropout. One thread. Saves nothing. Included by foreach_isa.h: no include guard.

constexpr float kHidden = -std::numeric_limits<float>::infinity();

// Query row r of a group: head group * h_kv + r / L_q, query r % L_q.
struct QueryRow {
  int64_t h, i;
  KeyRange keys;
};

// One sequence and the query heads that share a head of k and v: their rows, head after head.
template <class T>
struct Group {
  const AttentionCall& c;
  AttentionSpan span;
  int64_t h_kv, heads;

  Group(const AttentionCall& call, const AttentionSpan& s, int64_t kv)
      : c(call), span(s), h_kv(kv), heads(call.H / call.H_kv) {}

  int64_t rows() const { return heads * span.L_q; }
  QueryRow row(int64_t r) const {
    // Two divisions cost as much as a twentieth of a row's products.
    if (heads == 1) return {h_kv, r, visible_keys(c, span, r)};
    const int64_t i = r % span.L_q;
    return {h_kv * heads + r / span.L_q, i, visible_keys(c, span, i)};
  }
  const T* at(const void* base, const AttentionStrides& s, int64_t h, int64_t l) const {
    return static_cast<const T*>(base) + span.b * s.b + h * s.h + l * s.l;
  }
  const T* k(int64_t j) const { return at(c.k, c.k_strides, h_kv, span.k_first + j); }
  const T* v(int64_t j) const { return at(c.v, c.v_strides, h_kv, span.k_first + j); }
  // f(its rows, from which of them, how many) for every run of rows first .. first + count, of one head, of a
  // tensor with the rows of q.
  template <class F>
  void runs(const void* base, const AttentionStrides& s, int64_t first, int64_t count, const F& f) const {
    for (int64_t r = first; r < first + count;) {
      const int64_t i = r % span.L_q, left = span.L_q - i,
                    n = left < first + count - r ? left : first + count - r;
      f(at(base, s, h_kv * heads + r / span.L_q, span.q_first + i), r - first, n);
      r += n;
    }
  }
  // Such rows as floats: where they lie, or in `to`.
  RowsAt rows_at(const void* base, const AttentionStrides& s, int64_t first, int64_t count, int64_t width,
                 bool right, float* to) const {
    if (heads == 1)
      return rows_in_place(at(base, s, h_kv, span.q_first + first), s.l, count, width, right, to);
    runs(base, s, first, count, [&](const T* from, int64_t at, int64_t n) {
      widen_rows(from, s.l, n, width, to + at * padded_stride(width));
    });
    return {to, padded_stride(width)};
  }
  // The keys any of the rows first .. first + count sees.
  KeyRange keys(int64_t first, int64_t count) const {
    KeyRange all = {span.L_k, 0};
    for (int64_t r = first; r < first + count; ++r) {
      const KeyRange one = row(r).keys;
      if (one.first == one.end) continue;
      all = {one.first < all.first ? one.first : all.first, one.end > all.end ? one.end : all.end};
    }
    return all.end > all.first ? all : KeyRange{0, 0};
  }
  // Nothing but causality and the window shows or hides scores.
  bool plain() const { return c.mask == nullptr && c.bias == nullptr && c.alibi_slopes == nullptr; }
};

// Products become scores. Scaling q before the product instead would round once more.
FASTDL_INLINE void scale_scores(const AttentionCall& c, int64_t count, float* s) {
  const Vec scale = set1(c.scale);
  for (int64_t j = 0; j < count; j += kLanes) store(s + j, load(s + j) * scale);
}

// s becomes softcap tanh(s / softcap); the tanh goes to `slope`, if wanted, for backward.
FASTDL_INLINE void cap_scores(const AttentionCall& c, int64_t count, float* s, float* slope) {
  const Vec cap = set1(c.softcap), inverse = set1(1.0f / c.softcap);
  for (int64_t j = 0; j < count; j += kLanes) {
    const Vec t = tanh(load(s + j) * inverse);
    store(s + j, cap * t);
    if (slope != nullptr) store(slope + j, t);
  }
}

// Scores of keys first .. first + count, after the softcap: everything that is added or hidden but the ranges
// of causality and window.
template <class T>
static void show_scores(const Group<T>& g, const QueryRow& row, int64_t first, int64_t count, float* s) {
  const AttentionCall& c = g.c;
  if (c.bias != nullptr) {
    const AttentionStrides& t = c.bias_strides;
    const T* bias = static_cast<const T*>(c.bias) + g.span.b * t.b + row.h * t.h + row.i * t.l + first * t.d;
    if (t.d == 0) {
      const Vec same = set1(to_float(*bias));
      for (int64_t j = 0; j < count; j += kLanes) store(s + j, load(s + j) + same);
    } else if (t.d == 1) {
      for (int64_t j = 0; j < count; j += kLanes) {
        const int n = static_cast<int>(count - j < kLanes ? count - j : kLanes);
        store(s + j, load(s + j) + (n == kLanes ? load(bias + j) : load_first(bias + j, n)));
      }
    } else {
      for (int64_t j = 0; j < count; ++j) s[j] += to_float(bias[j * t.d]);
    }
  }
  if (c.alibi_slopes != nullptr) {
    const float slope = c.alibi_slopes[g.span.number * c.alibi_stride_b + row.h];
    const int64_t aligned = row.i + (c.causal == Causal::kTopLeft ? 0 : g.span.L_k - g.span.L_q);
    for (int64_t j = 0; j < count; ++j) s[j] -= slope * std::fabs(static_cast<float>(aligned - first - j));
  }
  if (c.mask != nullptr) {
    const AttentionStrides& t = c.mask_strides;
    const uint8_t* mask = c.mask + g.span.b * t.b + row.h * t.h + row.i * t.l + first * t.d;
    if (t.d == 1) {
      for (int64_t j = 0; j < count; j += kLanes) {
        const int n = static_cast<int>(count - j < kLanes ? count - j : kLanes);
        const VecInt seen =
            n == kLanes ? load_bytes(mask + j, VecInt{}) : load_bytes_first(mask + j, n, VecInt{});
        store(s + j, select(seen != 0, load(s + j), set1(kHidden)));
      }
    } else {
      for (int64_t j = 0; j < count; ++j) s[j] = mask[j * t.d] ? s[j] : kHidden;
    }
  }
}

// The part of keys first .. first + count that a row sees, from `first`.
FASTDL_INLINE KeyRange within(const KeyRange& keys, int64_t first, int64_t count) {
  const int64_t begin = clamp_to(keys.first - first, count), end = clamp_to(keys.end - first, count);
  return {begin, end > begin ? end : begin};
}

// The products with keys first .. first + count that a row does not see become -inf, up to the next whole
// vector.
FASTDL_INLINE void hide_unseen(const QueryRow& row, int64_t first, int64_t count, float* s) {
  const KeyRange seen = within(row.keys, first, count);
  for (int64_t j = 0; j < seen.first; j += kLanes) {
    const int before = static_cast<int>(seen.first - j < kLanes ? seen.first - j : kLanes);
    store(s + j, select(first_lanes(before), set1(kHidden), load(s + j)));
  }
  for (int64_t j = seen.end / kLanes * kLanes; j < count; j += kLanes)
    store(s + j, select(first_lanes(static_cast<int>(seen.end - j)), load(s + j), set1(kHidden)));
}

// A row's products with keys first .. first + count -> its scores. `slope`: as for cap_scores.
template <class T>
static void finish_scores(const Group<T>& g, const QueryRow& row, int64_t first, int64_t count, float* s,
                          float* slope) {
  scale_scores(g.c, count, s);
  if (g.c.softcap != 0) cap_scores(g.c, count, s, slope);
  if (!g.plain()) show_scores(g, row, first, count, s);
  hide_unseen(row, first, count, s);
}

// s[j] times 1 / (1 - p) or 0, for keys first .. first + count, first a multiple of 4; `words` has room for
// kBlockN.
static void drop(const AttentionCall& c, int64_t number, const QueryRow& row, int64_t first, int64_t count,
                 uint32_t* words, float* s) {
  const uint64_t counter = static_cast<uint64_t>(row.i) << 32 | static_cast<uint64_t>(first / 4);
  philox_words(counter, (count + 3) / 4, static_cast<uint64_t>(*c.seed), words,
               static_cast<uint32_t>(number * c.H + row.h));
  const VecBits threshold = VecBits{} + dropout_threshold(c.dropout_p);
  const Vec factor = set1(1.0f / (1.0f - c.dropout_p));
  for (int64_t j = 0; j < count; j += kLanes) {
    VecBits word;
    std::memcpy(&word, words + j, sizeof(word));
    store(s + j, select(reinterpret_cast<VecInt>(word >= threshold), load(s + j) * factor, zero()));
  }
}
