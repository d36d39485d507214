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

// A row of powers for the product with v on vectors: floats, in place of their scores. Where the product
// takes them otherwise, its row has the same members.
struct FloatRow {
  static constexpr bool kFloats = true;
  float* at;
  int64_t padded;  // whole vectors

  void put(int64_t j, Vec low, Vec high) const {
    store(at + j, low);
    if (j + kLanes < padded) store(at + j + kLanes, high);
  }
  void end() const {}
};
struct FloatsInPlace {
  FloatRow operator()(int64_t, float* scores, int64_t padded) const { return {scores, padded}; }
};

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

// What makes the scores of a row exponents of 2.
template <class T>
FASTDL_INLINE float exponent_slope(const Group<T>& g) {
  return scaled_alone(g) ? g.c.scale * kLog2E : kLog2E;
}
// The same where `reference`, which was rounded, is subtracted from the exponents: of large scores, which are
// scaled alone and not rounded, that would leave an exponent above 0 and a power that is infinite. They are
// rounded here then.
template <class T>
FASTDL_INLINE float exponent_slope(const Group<T>& g, float reference, int64_t padded, float* s) {
  const float slope = exponent_slope(g);
  if (!scaled_alone(g) || std::fabs(reference) < 0x1p23f) return slope;
  for (int64_t j = 0; j < padded; j += kLanes) store(s + j, load(s + j) * set1(slope));
  return 1;
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

// Part j .. end of a row of scores -> powers, added to their sum.
template <class Row>
FASTDL_INLINE Vec raise_powers(float slope, float shift, int64_t j, int64_t end, const float* s, Vec sum,
                               const Row& to) {
  const Vec slopes = set1(slope), shifts = set1(shift);
  const auto power = [&](int64_t at) __attribute__((always_inline)) {
    return exp2_or_zero(fma(load(s + at), slopes, shifts));
  };
  for (; j < end; j += 2 * kLanes) {
    const Vec low = power(j), high = j + kLanes < end ? power(j + kLanes) : zero();
    sum += low + high;
    to.put(j, low, high);
  }
  return sum;
}

// Floats -> a row of powers.
template <class Row>
FASTDL_INLINE void put_row(const float* from, int64_t padded, const Row& to) {
  for (int64_t j = 0; j < padded; j += 2 * kLanes)
    to.put(j, load(from + j), j + kLanes < padded ? load(from + j + kLanes) : zero());
  to.end();
}

// Rows first_row .. first_row + rows of products, kScoresRow apart, with keys first .. first + count ->
// powers against the new maxima, in the rows that row_of_powers(row, its scores, padded) gives; the rows'
// outputs, if they have been begun, are scaled to them. In steps, between which products may be multiplied.
template <class T, class RowOfPowers>
class OnlineSoftmax {
 public:
  struct Tile {
    int64_t first_row, rows, first, count;
    bool begun;
  };

  OnlineSoftmax(const Group<T>& g, const Tile& tile, float* scores, uint32_t* words, const Running& now,
                const RowOfPowers& row_of_powers)
      : g_(g),
        tile_(tile),
        scores_(scores),
        words_(words),
        now_(now),
        row_of_powers_(row_of_powers),
        padded_(round_up(tile.count, kLanes)),
        alone_(scaled_alone(g)) {}

  // A step, if one is left: some 100 instructions, more where scores are masked, biased, capped or dropped.
  __attribute__((always_inline)) void operator()() {
    if (row_ < tile_.rows) some_step();
  }
  void finish() {
    while (row_ < tile_.rows) step(padded_);
  }

 private:
  const Group<T>& g_;
  const Tile tile_;
  float* const scores_;
  uint32_t* const words_;
  const Running now_;
  const RowOfPowers row_of_powers_;
  const int64_t padded_;
  const bool alone_;
  RowPowers p_;
  bool maxima_ = true;  // being looked for
  int64_t row_ = 0, at_ = 0;
  float row_slope_ = 0;
  Vec sum_ = zero();

  __attribute__((noinline)) void some_step() { step(4 * kLanes); }

  // The next row's largest score, or up to `most` of its powers.
  __attribute__((always_inline)) inline void step(int64_t most) {
    maxima_ ? take_largest() : take_powers(most);
  }
  __attribute__((always_inline)) inline void take_largest() {
    p_.shift[row_] =
        largest_score(g_, query_row(), tile_.first, tile_.count, alone_, scores_ + row_ * kScoresRow);
    if (++row_ < tile_.rows) return;
    raise_maxima(tile_.rows, exponent_slope(g_), now_, p_);
    maxima_ = false, row_ = 0;
  }
  __attribute__((always_inline)) inline void take_powers(int64_t most) {
    float* const s = scores_ + row_ * kScoresRow;
    const auto to = row_of_powers_(row_, s, padded_);
    const float shift = p_.shift[row_];
    if (at_ == 0) row_slope_ = exponent_slope(g_, shift, padded_, s);
    if (g_.c.dropout_p > 0) {
      sum_ = raise_powers(row_slope_, shift, 0, padded_, s, sum_, FloatRow{s, padded_});
      drop(g_.c, g_.span.number, query_row(), tile_.first, tile_.count, words_, s);
      if constexpr (!decltype(to)::kFloats) put_row(s, padded_, to);
    } else {
      const int64_t end = padded_ - at_ < most ? padded_ : at_ + most;
      sum_ = raise_powers(row_slope_, shift, at_, end, s, sum_, to);
      at_ = end;
      if (at_ < padded_) return;
      to.end();
    }
    now_.total[row_] += sum_of(sum_);
    scale_output();
    sum_ = zero(), at_ = 0, ++row_;
  }
  __attribute__((always_inline)) inline void scale_output() const {
    if (!tile_.begun || p_.factor[row_] == 1) return;
    const Vec factor = set1(p_.factor[row_]);
    const int64_t stride = padded_stride(g_.c.D_v);
    float* const output = now_.output + row_ * stride;
    for (int64_t d = 0; d < stride; d += kLanes) store(output + d, load(output + d) * factor);
  }
  QueryRow query_row() const { return g_.row(tile_.first_row + row_); }
};

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
