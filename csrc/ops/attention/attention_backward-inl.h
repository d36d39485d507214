// Gradients of q, k, v, bias and sink: scores and their powers are computed again from q, k and lse.
// A task takes a head of k and v with its query heads, or a range of its keys: keys block by block, and for
// each all rows that see it. Partial gradients of q are summed in a fixed order, whatever the threads. Saves
// nothing.

// How the work is cut, by the shape alone: no result depends on the threads. Groups that add to the same part
// of grad_bias, a slice, are its members: they follow one another in ranges, each with a sum of its own.
struct BackwardShape {
  int64_t rows;     // of the query heads of a group
  int64_t partial;  // floats of a partial gradient of q: tiles write whole sixteens of rows
  int64_t slices, members, slice_step, member_step;
  int64_t splits, ranges;  // of the keys; of the members

  int64_t steps() const { return (members + ranges - 1) / ranges; }
  int64_t group(int64_t slice, int64_t member) const { return slice * slice_step + member * member_step; }
};

FASTDL_INLINE int64_t bias_elements(const AttentionBackward& args) {
  const int64_t* size = args.bias_sizes;
  return args.grad_bias == nullptr ? 0 : size[0] * size[1] * size[2] * size[3];
}

template <class Products>
static BackwardShape backward_shape(const AttentionBackward& args) {
  const AttentionCall& c = args.c;
  BackwardShape shape = {c.H / c.H_kv * c.max_q, 0, c.B * c.H_kv, 1, 1, 0, 1, 1};
  shape.partial = round_up(shape.rows, 16) * padded_stride(c.D);
  const bool bias = args.grad_bias != nullptr;
  const bool of_all_sequences = bias && args.bias_sizes[0] == 1,
             of_all_heads = bias && args.bias_sizes[1] == 1;
  if (of_all_sequences || of_all_heads) {
    shape.members = (of_all_sequences ? c.B : 1) * (of_all_heads ? c.H_kv : 1);
    shape.slices = shape.members > 0 ? c.B * c.H_kv / shape.members : 0;
    shape.slice_step = of_all_sequences ? 1 : c.H_kv;
    shape.member_step = of_all_heads ? 1 : c.H_kv;
  }
  // Tasks for 16 threads: of the keys, then of the members, whose sums take memory.
  const bool split = !bias || args.bias_sizes[3] > 1;
  while (split && shape.slices * shape.splits < 16 && c.max_k / (shape.splits + 1) >= 4 * Products::kKeys)
    ++shape.splits;
  while (shape.slices * shape.splits * shape.ranges < 16 && shape.ranges < shape.members) ++shape.ranges;
  return shape;
}

// rows x width floats of padded_stride(width), times a factor -> one row of a contiguous gradient.
template <class T>
static void store_gradient(const float* from, int64_t width, float factor, T* to) {
  const Vec scale = set1(factor);
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) store(to + d, load(from + d) * scale);
  if (d < width) store_first(to + d, load(from + d) * scale, static_cast<int>(width - d));
}

// Keys begin .. end of a group: grad_k and grad_v whole, `grad_q` [rows][padded_stride(D)] and `grad_bias`
// (null: not wanted) added to.
template <class T, class Products>
static void backward_keys(const RowValues<T>& values, int64_t begin, int64_t end, const float* delta,
                          GradientScratch<Products>& scratch, float* grad_q, float* grad_bias) {
  constexpr int64_t kRows = Products::kRows, kKeys = Products::kKeys;
  Products& products = scratch.products;
  const AttentionBackward& args = values.args;
  const AttentionCall& c = args.c;
  const Group<T>& g = values.g;
  const int64_t D = padded_stride(c.D), D_v = padded_stride(c.D_v);
  for (int64_t k0 = begin; k0 < end; k0 += kKeys) {
    const int64_t n = end - k0 < kKeys ? end - k0 : kKeys;
    products.take_keys(g, k0, n);
    products.begin_gradients(g, k0, n);
    for (int64_t first = 0; first < g.rows(); first += kRows) {
      const int64_t m = g.rows() - first < kRows ? g.rows() - first : kRows;
      const KeyRange seen = within(g.keys(first, m), k0, n);
      if (seen.first == seen.end) continue;
      gradient_tile(values, first, m, k0, seen.end, delta + first, grad_bias, scratch);
      products.add_gradients(c, m, seen.end, scratch.powers, scratch.grad_s, grad_q + first * D);
    }
    products.end_gradients(c, n);
    for (int64_t j = 0; j < n; ++j) {
      const int64_t at = key_row(c, g.span, g.h_kv, k0 + j);
      store_gradient(products.grad_k + j * D, c.D, c.scale, static_cast<T*>(args.grad_k) + at * c.D);
      store_gradient(products.grad_v + j * D_v, c.D_v, 1.0f, static_cast<T*>(args.grad_v) + at * c.D_v);
    }
  }
}

// grad_q of a group: the partial sums of its splits, in their order.
template <class T>
static void finish_grad_q(const AttentionBackward& args, const Group<T>& g, const BackwardShape& shape,
                          float* partial) {
  const AttentionCall& c = args.c;
  const int64_t D = padded_stride(c.D);
  for (int64_t r = 0; r < g.rows(); ++r) {
    float* sum = partial + r * D;
    for (int64_t split = 1; split < shape.splits; ++split)
      for (int64_t d = 0; d < D; d += kLanes)
        store(sum + d, load(sum + d) + load(sum + split * shape.partial + d));
    const QueryRow row = g.row(r);
    store_gradient(sum, c.D, c.scale,
                   static_cast<T*>(args.grad_q) + query_row(c, g.span, row.h, row.i) * c.D);
  }
}

// grad_bias += the sums of the other ranges of members, in their order.
static void finish_grad_bias(const AttentionBackward& args, int64_t ranges, const float* sums,
                             const ThreadPool& pool) {
  constexpr int64_t kBlock = 4096;
  const int64_t count = bias_elements(args);
  parallel_tasks(pool, ranges > 1 ? (count + kBlock - 1) / kBlock : 0, [&](int64_t block, int64_t) {
    const int64_t end = (block + 1) * kBlock < count ? (block + 1) * kBlock : count;
    for (int64_t range = 0; range < ranges - 1; ++range)
      for (int64_t i = block * kBlock; i < end; ++i) args.grad_bias[i] += sums[range * count + i];
  });
}

// A task sums the rows of one head over the sequences, in their order; `deltas` [B * H_kv][rows] from the
// first pass.
template <class T>
static void grad_sink(const AttentionBackward& args, const float* deltas, int64_t rows,
                      const ThreadPool& pool) {
  const AttentionCall& c = args.c;
  parallel_tasks(pool, c.H, [&](int64_t h, int64_t) {
    const int64_t heads = c.H / c.H_kv;
    double sum = 0;
    for (int64_t b = 0; b < c.B; ++b) {
      const AttentionSpan span = attention_span(c, b);
      const float* delta = deltas + (b * c.H_kv + h / heads) * rows + h % heads * span.L_q;
      for (int64_t i = 0; i < span.L_q; ++i)
        sum -= std::exp(c.sink[h] - args.lse[lse_index(c, span, h, i)]) * delta[i];
    }
    args.grad_sink[h] = static_cast<float>(sum);
  });
}

// False: a number does not fit the products, all is to be computed again.
template <class T, class Products>
static bool backward_by(const AttentionBackward& args, const ThreadPool& pool) {
  constexpr int64_t kKeys = Products::kKeys;
  const AttentionCall& c = args.c;
  const BackwardShape shape = backward_shape<Products>(args);
  const int64_t groups = c.B * c.H_kv, owners = shape.slices * shape.ranges, tasks = owners * shape.splits;
  const int64_t D = padded_stride(c.D), floats = round_up(GradientScratch<Products>::floats(c), 16);
  const int64_t workers = pool.size(), partial_count = shape.splits > 1 ? tasks : workers;
  const int64_t bias_sums = (shape.ranges - 1) * bias_elements(args);
  typedef typename Products::Sizes Sizes;
  const int64_t all_floats =
      round_up(workers * floats + partial_count * shape.partial + bias_sums + groups * shape.rows, 16);
  float* memory = static_cast<float*>(thread_scratch(static_cast<size_t>(all_floats) * sizeof(float) +
                                                     static_cast<size_t>(workers) * sizeof(Sizes)));
  float *partials = memory + workers * floats, *sums = partials + partial_count * shape.partial;
  float* deltas = sums + bias_sums;
  Sizes* const sizes = reinterpret_cast<Sizes*>(memory + all_floats);
  for (int64_t worker = 0; worker < workers; ++worker) sizes[worker] = {};
  parallel_tasks(pool, groups, [&](int64_t group, int64_t) {
    const Group<T> g(c, attention_span(c, group / c.H_kv), group % c.H_kv);
    const RowValues<T> values{args, g};
    for (int64_t r = 0; r < g.rows(); ++r) deltas[group * shape.rows + r] = values.delta(g.row(r));
  });
  if (bias_sums > 0) std::memset(sums, 0, static_cast<size_t>(bias_sums) * sizeof(float));
  for (int64_t step = 0; step < shape.steps(); ++step) {
    // The step's group of an owner; false: its range has ended.
    const auto group_of = [&](int64_t owner, int64_t* group) {
      const int64_t member = owner % shape.ranges * shape.steps() + step;
      *group = shape.group(owner / shape.ranges, member);
      return member < shape.members;
    };
    parallel_tasks(pool, tasks, [&](int64_t task, int64_t worker) {
      const int64_t owner = task / shape.splits, split = task % shape.splits, range = owner % shape.ranges;
      int64_t group;
      if (!group_of(owner, &group)) return;
      const Group<T> g(c, attention_span(c, group / c.H_kv), group % c.H_kv);
      float* grad_q = partials + (shape.splits > 1 ? task : worker) * shape.partial;
      for (int64_t i = 0; i < g.rows() * D; i += kLanes) store(grad_q + i, zero());
      const RowValues<T> values{args, g};
      [[maybe_unused]] const typename Products::Use use;
      GradientScratch<Products> scratch(memory + worker * floats, c);
      const int64_t blocks = (g.span.L_k + kKeys - 1) / kKeys;
      const int64_t share = (blocks + shape.splits - 1) / shape.splits * kKeys;
      const int64_t begin = split * share, end = begin + share < g.span.L_k ? begin + share : g.span.L_k;
      float* grad_bias = range == 0 ? args.grad_bias : sums + (range - 1) * bias_elements(args);
      backward_keys(values, begin, end, deltas + group * shape.rows, scratch, grad_q, grad_bias);
      sizes[worker].widen_by(scratch.products.sizes);
      if (shape.splits == 1) finish_grad_q(args, g, shape, grad_q);
    });
    if (shape.splits > 1)
      parallel_tasks(pool, owners, [&](int64_t owner, int64_t) {
        int64_t group;
        if (!group_of(owner, &group)) return;
        const Group<T> g(c, attention_span(c, group / c.H_kv), group % c.H_kv);
        finish_grad_q(args, g, shape, partials + owner * shape.splits * shape.partial);
      });
  }
  Sizes all = {};
  for (int64_t worker = 0; worker < workers; ++worker) all.widen_by(sizes[worker]);
  if (!all.fit(c)) {
    if (args.grad_bias != nullptr)
      std::memset(args.grad_bias, 0, static_cast<size_t>(bias_elements(args)) * sizeof(float));
    return false;
  }
  finish_grad_bias(args, shape.ranges, sums, pool);
  if (args.grad_sink != nullptr) grad_sink<T>(args, deltas, shape.rows, pool);
  return true;
}

template <class T, class Products = VectorBackward<T>>
static void backward(const AttentionBackward& args, const ThreadPool& pool) {
  backward_by<T, Products>(args, pool);
}
