// The running results of a query row while its keys are taken block by block, and what is made of them. One
// thread. Saves lse. Included by foreach_isa.h: no include guard.

// Running results of a chunk's rows: output before the division, [rows][padded_stride(D_v)], maximum and sum.
// The maximum is of scores times log2 e: powers are of 2.
struct Running {
  float *output, *highest, *total;
};

// Of a row that has seen no key; sink: its own, or null.
FASTDL_INLINE void begin_row(const Running& now, const float* sink) {
  *now.highest = sink != nullptr ? *sink * kLog2E : kHidden;
  const bool finite = sink != nullptr && std::isfinite(*sink);
  // What the product rounded off is left to the sum.
  *now.total = finite ? static_cast<float>(std::exp(*sink - *now.highest * kLn2))
               : sink == nullptr || *sink == kHidden ? 0.0f
                                                     : 1.0f;
}

// Powers as the product with v takes them: floats, or at the beginning of their row bf16, 0 up to whole
// tiles.
template <bool kNarrowed>
FASTDL_INLINE void store_powers(float* s, int64_t j, int64_t padded, Vec low, Vec high) {
  if constexpr (kNarrowed) {
#if FASTDL_TILES
    store_narrowed(reinterpret_cast<BFloat16*>(s) + j, low, high);
#endif
  } else {
    store(s + j, low);
    if (j + kLanes < padded) store(s + j + kLanes, high);
  }
}

#if FASTDL_TILES
// What store_powers has left: floats where there was dropout, and zeros up to whole tiles.
FASTDL_INLINE void narrow_rest(float* s, int64_t padded, bool floats) {
  if (floats) return narrow_in_place(s, padded);
  for (int64_t j = round_up(padded, 2 * kLanes); j < round_up(padded, kAmxDepth); j += 2 * kLanes)
    store_powers<true>(s, j, padded, zero(), zero());
}
#endif

// Rows of scores at once: their largest and the factors of their results wait for no row.
constexpr int64_t kMostRows = 64;

// Of rows: the largest score, then what is added to exponents, and the factor of what the rows had so far.
struct RowPowers {
  alignas(64) float shift[kMostRows], factor[kMostRows];
};

// Whether products become scores by their scale alone, which then is a factor of the exponent: sums do not
// depend on how the keys are cut. Below 0 the largest score would be that of the least product.
template <class T>
FASTDL_INLINE bool scaled_alone(const Group<T>& g) {
  return g.plain() && g.c.softcap == 0 && g.c.scale > 0;
}

// The largest score of a row: of its products, where those are scaled alone.
template <class T>
FASTDL_INLINE float largest_score(const Group<T>& g, const QueryRow& row, int64_t first, int64_t count,
                                  bool alone, float* s) {
  alone ? hide_unseen(row, first, count, s) : finish_scores(g, row, first, count, s, nullptr);
  Vec best = set1(kHidden);
  for (int64_t j = 0; j < count; j += kLanes) best = max(load(s + j), best);
  return max_of(best);
}

// Rows of largest scores, in shift -> the new maxima, and shift and factor.
FASTDL_INLINE void raise_maxima(int64_t rows, float slope, const Running& now, RowPowers& p) {
  const Vec slopes = set1(slope);
  for (int64_t r = 0; r < rows; r += kLanes) {
    const int n = static_cast<int>(rows - r < kLanes ? rows - r : kLanes);
    const Vec before = load_first(now.highest + r, n), highest = max(load(p.shift + r) * slopes, before);
    const Vec reference = select(highest == set1(kHidden), zero(), highest);
    const Vec factor = select(highest == before, set1(1.0f), exp2_or_zero(before - reference));
    store_first(now.highest + r, highest, n);
    store_first(now.total + r, load_first(now.total + r, n) * factor, n);
    store(p.shift + r, zero() - reference);
    store(p.factor + r, factor);
  }
}

// A row of scores -> powers, and their sum.
template <bool kNarrowed>
FASTDL_INLINE float raise_powers(float slope, float shift, int64_t padded, float* s) {
  const Vec slopes = set1(slope), shifts = set1(shift);
  const auto power = [&](int64_t j) __attribute__((always_inline)) {
    return exp2_or_zero(fma(load(s + j), slopes, shifts));
  };
  Vec sum = zero();
  for (int64_t j = 0; j < padded; j += 2 * kLanes) {
    const Vec low = power(j), high = j + kLanes < padded ? power(j + kLanes) : zero();
    sum += low + high;
    store_powers<kNarrowed>(s, j, padded, low, high);
  }
  return sum_of(sum);
}

// Rows first_row .. first_row + rows of products, kScoresRow apart, with keys first .. first + count ->
// powers against the new maxima; the rows' outputs, if they have been begun, are scaled to them.
template <bool kNarrowed, class T>
static void online_softmax(const Group<T>& g, int64_t first_row, int64_t rows, int64_t first, int64_t count,
                           bool begun, float* scores, uint32_t* words, const Running& now) {
  const int64_t padded = round_up(count, kLanes), stride = padded_stride(g.c.D_v);
  const bool drops = g.c.dropout_p > 0, alone = scaled_alone(g);
  const float slope = alone ? g.c.scale * kLog2E : kLog2E;
  RowPowers p;
  for (int64_t r = 0; r < rows; ++r)
    p.shift[r] = largest_score(g, g.row(first_row + r), first, count, alone, scores + r * kScoresRow);
  raise_maxima(rows, slope, now, p);
  for (int64_t r = 0; r < rows; ++r) {
    float* const s = scores + r * kScoresRow;
    now.total[r] += kNarrowed && !drops ? raise_powers<kNarrowed>(slope, p.shift[r], padded, s)
                                        : raise_powers<false>(slope, p.shift[r], padded, s);
    if (drops) drop(g.c, g.span.number, g.row(first_row + r), first, count, words, s);
#if FASTDL_TILES
    if constexpr (kNarrowed) narrow_rest(s, padded, drops);
#endif
    if (!begun || p.factor[r] == 1) continue;
    const Vec factor = set1(p.factor[r]);
    float* const output = now.output + r * stride;
    for (int64_t d = 0; d < stride; d += kLanes) store(output + d, load(output + d) * factor);
  }
}

// The natural logarithms of kLanes sums, to 2e-11 by 2 atanh((m - 1) / (m + 1)) of m from sqrt(1/2) to
// sqrt(2): a call of std::log takes as long as a row of 16 keys.
FASTDL_INLINE void logarithms(const float* sums, double* to) {
  for (int i = 0; i < kLanes; ++i) {
    uint32_t bits;
    std::memcpy(&bits, sums + i, sizeof(bits));
    const int32_t exponent = static_cast<int32_t>(bits - 0x3f3504f3) >> 23;
    bits -= static_cast<uint32_t>(exponent) << 23;
    float m;
    std::memcpy(&m, &bits, sizeof(m));
    const double s = (m - 1.0) / (m + 1.0), z = s * s;
    const double series = 1 + z * (1.0 / 3 + z * (1.0 / 5 + z * (1.0 / 7 + z * (1.0 / 9 + z * (1.0 / 11)))));
    to[i] = exponent * kLn2 + 2 * s * series;
  }
}

// lse of query rows first .. first + count of a group, if it is wanted.
template <class T>
static void store_lse(const AttentionForward& args, const Group<T>& g, int64_t first, int64_t count,
                      const float* highest, const float* total) {
  if (args.lse == nullptr) return;
  for (int64_t r0 = 0; r0 < count; r0 += kLanes) {
    const int n = static_cast<int>(count - r0 < kLanes ? count - r0 : kLanes);
    alignas(64) float sums[kLanes];
    alignas(64) double logs[kLanes];
    store(sums, load_first(total + r0, n));
    logarithms(sums, logs);
    for (int i = 0; i < n; ++i) {
      const QueryRow row = g.row(first + r0 + i);
      const float most = highest[r0 + i];
      const double log = std::isfinite(sums[i]) ? logs[i] : std::log(static_cast<double>(sums[i]));
      args.lse[lse_index(args.c, g.span, row.h, row.i)] =
          sums[i] == 0 ? kHidden : (most == kHidden ? 0.0 : most * kLn2) + log;
    }
  }
}

// The running results of a row -> output.
template <class T>
static void finish_row(const AttentionForward& args, const Group<T>& g, const QueryRow& row,
                       const float* output, float total) {
  const AttentionCall& c = args.c;
  T* out = const_cast<T*>(g.at(args.output, args.output_strides, row.h, g.span.q_first + row.i));
  const Vec inverse = set1(total == 0 ? 0.0f : 1.0f / total);
  int64_t d = 0;
  for (; d + kLanes <= c.D_v; d += kLanes) store(out + d, load(output + d) * inverse);
  if (d < c.D_v) store_first(out + d, load(output + d) * inverse, static_cast<int>(c.D_v - d));
}
