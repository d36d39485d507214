// A tile of backward: scores and their powers are computed again from q, k and lse, then the gradient of the
// scores. One thread. Saves nothing. Included by foreach_isa.h: no include guard.

template <class Products>
struct GradientScratch {
  Products products;
  float *powers, *grad_s;  // [kRows][kKeys]
  float *slope, *kept;     // [kKeys]
  uint32_t* words;         // [kBlockN]

  static int64_t floats(const AttentionCall& c) {
    return Products::floats(c) + 2 * (Products::kRows + 1) * Products::kKeys + kBlockN;
  }
  GradientScratch(float* at, const AttentionCall& c) : products(at, c) {
    powers = at + Products::floats(c), grad_s = powers + Products::kRows * Products::kKeys;
    slope = grad_s + Products::kRows * Products::kKeys, kept = slope + Products::kKeys;
    words = reinterpret_cast<uint32_t*>(kept + Products::kKeys);
  }
};

template <class T>
struct RowValues {
  const AttentionBackward& args;
  const Group<T>& g;

  int64_t at(const QueryRow& row) const { return lse_index(args.c, g.span, row.h, row.i); }
  double lse(const QueryRow& row) const { return args.lse[at(row)]; }
  float grad_lse(const QueryRow& row) const {
    return args.grad_lse == nullptr ? 0.0f : static_cast<float>(args.grad_lse[at(row)]);
  }
  // sum_d grad_output output - grad_lse
  float delta(const QueryRow& row) const {
    const AttentionCall& c = args.c;
    const T* output = static_cast<const T*>(args.output) + query_row(c, g.span, row.h, row.i) * c.D_v;
    const T* grad = g.at(args.grad_output, args.grad_output_strides, row.h, g.span.q_first + row.i);
    Vec sum = zero();
    int64_t d = 0;
    for (; d + kLanes <= c.D_v; d += kLanes) sum = fma(load(output + d), load(grad + d), sum);
    if (d < c.D_v) {
      const int left = static_cast<int>(c.D_v - d);
      sum = fma(load_first(output + d, left), load_first(grad + d, left), sum);
    }
    return sum_of(sum) - grad_lse(row);
  }
};

// A row's scores and gradients of its powers -> dropped powers, and the gradient of the shown scores.
template <class T, class Scratch>
static void row_gradient(const RowValues<T>& values, const QueryRow& row, int64_t first, int64_t count,
                         float delta, float* powers, float* grad_s, const Scratch& scratch) {
  const Group<T>& g = values.g;
  const int64_t padded = round_up(count, kLanes);
  const KeyRange seen = within(row.keys, first, count);
  const double lse = values.lse(row);
  if (seen.first == seen.end || lse == kHidden) {
    for (int64_t j = 0; j < padded; j += kLanes) {
      store(powers + j, zero()), store(grad_s + j, zero());
      if (g.c.softcap != 0) store(scratch.slope + j, zero());  // a NaN left there would not be hidden by 0
    }
    return;
  }
  if (scaled_alone(g))
    hide_unseen(row, first, count, powers);
  else
    finish_scores(g, row, first, count, powers, scratch.slope);
  const bool dropout = g.c.dropout_p > 0;
  if (dropout) {
    for (int64_t j = 0; j < padded; j += kLanes) store(scratch.kept + j, set1(1.0f));
    drop(g.c, g.span.number, row, first, padded, scratch.words, scratch.kept);
  }
  // Exponents as in forward, whose roundings lse holds; in two parts, as one float of it would be wrong by
  // more than the powers may be.
  const double highest = lse / kLn2;
  const float near = static_cast<float>(highest);
  const Vec slope = set1(exponent_slope(g, near, padded, powers)), shift = set1(-near),
            rest = set1(static_cast<float>(highest - near));
  const auto power = [&](int64_t j) __attribute__((always_inline)) {
    return exp2_or_zero(fma(load(powers + j), slope, shift) - rest);
  };
  const auto grad_p = [&](int64_t j) __attribute__((always_inline)) {
    const Vec grad = load(grad_s + j);
    return dropout ? grad * load(scratch.kept + j) : grad;
  };
  const auto put = [&](int64_t j, Vec p, Vec grad) __attribute__((always_inline)) {
    store(grad_s + j, p * grad);
    store(powers + j, dropout ? p * load(scratch.kept + j) : p);
  };
  if (g.c.sink != nullptr || seen.end - seen.first != row.keys.end - row.keys.first) {
    for (int64_t j = 0; j < padded; j += kLanes) put(j, power(j), grad_p(j) - set1(delta));
    return;
  }
  // All keys of the row are here: their sums are more exact than lse and output, which were rounded.
  Vec total = zero(), along = zero();
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Vec p = power(j), grad = grad_p(j);
    total += p;
    along = fma(p, grad, along);
    store(powers + j, p);
    store(grad_s + j, grad);
  }
  const float sum = sum_of(total);
  const Vec scale = set1(1.0f / sum), common = set1(sum_of(along) / sum - values.grad_lse(row));
  for (int64_t j = 0; j < padded; j += kLanes) put(j, load(powers + j) * scale, load(grad_s + j) - common);
}

// Through the softcap: the gradient of what came before it.
FASTDL_INLINE void uncap_gradient(int64_t count, const float* slope, float* grad_s) {
  for (int64_t j = 0; j < count; j += kLanes) {
    const Vec t = load(slope + j);
    store(grad_s + j, load(grad_s + j) * (set1(1.0f) - t * t));
  }
}

// grad_bias of one row, in the row's own place or where it is broadcast.
template <class T>
static void add_grad_bias(const int64_t* size, const Group<T>& g, const QueryRow& row, int64_t first,
                          int64_t count, const float* grad_s, float* grad_bias) {
  const int64_t b = size[0] == 1 ? 0 : g.span.number, h = size[1] == 1 ? 0 : row.h,
                i = size[2] == 1 ? 0 : row.i;
  float* to = grad_bias + ((b * size[1] + h) * size[2] + i) * size[3];
  if (size[3] == 1) {
    double sum = 0;  // nearly 0: softmax does not see what all keys share
    for (int64_t j = 0; j < count; ++j) sum += grad_s[j];
    *to += static_cast<float>(sum);
  } else {
    for (int64_t j = 0; j < count; ++j) to[first + j] += grad_s[j];
  }
}

// The tile of query rows first .. first + m and keys k0 .. k0 + n, which were taken: the rows are taken,
// powers and grad_s are filled, `grad_bias` (null: not wanted) is added to.
template <class T, class Products>
static void gradient_tile(const RowValues<T>& values, int64_t first, int64_t m, int64_t k0, int64_t n,
                          const float* delta, float* grad_bias, GradientScratch<Products>& scratch) {
  constexpr int64_t kKeys = Products::kKeys;
  const AttentionBackward& args = values.args;
  const AttentionCall& c = args.c;
  const Group<T>& g = values.g;
  scratch.products.take_rows(args, g, first, m);
  scratch.products.scores(c, m, n, scratch.powers);
  scratch.products.grad_powers(c, m, n, scratch.grad_s);
  for (int64_t r = 0; r < m; ++r) {
    const QueryRow row = g.row(first + r);
    float* grad_s = scratch.grad_s + r * kKeys;
    row_gradient(values, row, k0, n, delta[r], scratch.powers + r * kKeys, grad_s, scratch);
    if (grad_bias != nullptr) add_grad_bias(args.bias_sizes, g, row, k0, n, grad_s, grad_bias);
    if (c.softcap != 0) uncap_gradient(n, scratch.slope, grad_s);
  }
}
