// Gradients of q, k, v, bias and sink: scores and their powers are computed again from q, k and lse.
// A task takes a head of k and v with its query heads, or a range of its keys: keys block by block, and for
// each all rows that see it. Partial gradients of q are summed in a fixed order, whatever the threads. Saves
// nothing.

struct BackwardShape {
  int64_t groups, splits, rows;  // rows: of the query heads of a group
  int64_t partial;               // floats of a partial gradient of q: tiles write whole sixteens of rows
  bool bias_inside;              // grad_bias belongs to one task each: no pass of its own
};

template <class Products>
static BackwardShape backward_shape(const AttentionBackward& args) {
  const AttentionCall& c = args.c;
  BackwardShape shape = {c.B * c.H_kv, 1, c.H / c.H_kv * c.max_q, 0, false};
  shape.partial = round_up(shape.rows, 16) * padded_stride(c.D);
  if (args.grad_bias != nullptr) shape.bias_inside = args.bias_sizes[0] == c.B && args.bias_sizes[1] == c.H;
  const bool split = !(shape.bias_inside && args.bias_sizes[3] == 1);
  // Tasks for 16 threads; the cut depends on the shape alone, so results do not depend on the threads.
  while (split && shape.groups * shape.splits < 16 && c.max_k / (shape.splits + 1) >= 4 * Products::kKeys)
    ++shape.splits;
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

// Keys begin .. end of a group: grad_k and grad_v whole, `grad_q` [rows][padded_stride(D)] added to.
template <class T, class Products>
static void backward_keys(const RowValues<T>& values, int64_t begin, int64_t end, const float* delta,
                          bool bias, const GradientScratch<Products>& scratch, float* grad_q) {
  constexpr int64_t kRows = Products::kRows, kKeys = Products::kKeys;
  const Products& products = scratch.products;
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
      gradient_tile(values, first, m, k0, n, delta + first, bias, scratch);
      products.add_gradients(c, m, n, scratch.powers, scratch.grad_s, grad_q + first * D);
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

// grad_bias that several sequences or heads share: a task owns a block of its rows and takes them in order.
template <class T, class Products>
static void shared_grad_bias(const AttentionBackward& args, float* memory, int64_t floats,
                             const ThreadPool& pool) {
  constexpr int64_t kRows = Products::kRows, kKeys = Products::kKeys;
  const AttentionCall& c = args.c;
  const int64_t* size = args.bias_sizes;
  const int64_t blocks = size[2] == 1 ? 1 : (c.L_q + kRows - 1) / kRows;
  parallel_tasks(pool, size[0] * size[1] * blocks, [&](int64_t task, int64_t worker) {
    const int64_t block = task % blocks, own_h = task / blocks % size[1], own_b = task / blocks / size[1];
    [[maybe_unused]] const typename Products::Use use;
    const GradientScratch<Products> scratch(memory + worker * floats, c);
    float delta[kRows];
    for (int64_t b = size[0] == 1 ? 0 : own_b; b < (size[0] == 1 ? c.B : own_b + 1); ++b)
      for (int64_t h = size[1] == 1 ? 0 : own_h; h < (size[1] == 1 ? c.H : own_h + 1); ++h) {
        const int64_t heads = c.H / c.H_kv;
        const Group<T> g(c, attention_span(c, b), h / heads);
        const RowValues<T> values{args, g};
        const int64_t begin = blocks == 1 ? 0 : block * kRows;
        const int64_t end = blocks == 1 || begin + kRows > c.L_q ? c.L_q : begin + kRows;
        for (int64_t i = begin; i < end; i += kRows) {
          const int64_t m = end - i < kRows ? end - i : kRows, first = h % heads * c.L_q + i;
          for (int64_t r = 0; r < m; ++r) delta[r] = values.delta(g.row(first + r));
          const KeyRange keys = g.keys(first, m);
          for (int64_t k0 = keys.first / kKeys * kKeys; k0 < keys.end; k0 += kKeys) {
            const int64_t n = c.L_k - k0 < kKeys ? c.L_k - k0 : kKeys;
            scratch.products.take_keys(g, k0, n);
            gradient_tile(values, first, m, k0, n, delta, true, scratch);
          }
        }
      }
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

template <class T, class Products = VectorBackward<T>>
static void backward(const AttentionBackward& args, const ThreadPool& pool) {
  constexpr int64_t kKeys = Products::kKeys;
  const AttentionCall& c = args.c;
  const BackwardShape shape = backward_shape<Products>(args);
  const int64_t D = padded_stride(c.D), floats = round_up(GradientScratch<Products>::floats(c), 16);
  const int64_t workers = pool.size();
  const int64_t partial_count = shape.splits > 1 ? shape.groups * shape.splits : workers;
  float* memory = static_cast<float*>(thread_scratch(
      static_cast<size_t>(workers * floats + partial_count * shape.partial + shape.groups * shape.rows) *
      sizeof(float)));
  float *partials = memory + workers * floats, *deltas = partials + partial_count * shape.partial;
  parallel_tasks(pool, shape.groups, [&](int64_t group, int64_t) {
    const Group<T> g(c, attention_span(c, group / c.H_kv), group % c.H_kv);
    const RowValues<T> values{args, g};
    for (int64_t r = 0; r < g.rows(); ++r) deltas[group * shape.rows + r] = values.delta(g.row(r));
  });
  parallel_tasks(pool, shape.groups * shape.splits, [&](int64_t task, int64_t worker) {
    const int64_t group = task / shape.splits, split = task % shape.splits;
    const Group<T> g(c, attention_span(c, group / c.H_kv), group % c.H_kv);
    float* grad_q = partials + (shape.splits > 1 ? task : worker) * shape.partial;
    for (int64_t i = 0; i < g.rows() * D; i += kLanes) store(grad_q + i, zero());
    const RowValues<T> values{args, g};
    [[maybe_unused]] const typename Products::Use use;
    const GradientScratch<Products> scratch(memory + worker * floats, c);
    const float* delta = deltas + group * shape.rows;
    const int64_t blocks = (g.span.L_k + kKeys - 1) / kKeys;
    const int64_t share = (blocks + shape.splits - 1) / shape.splits * kKeys;
    const int64_t begin = split * share, end = begin + share < g.span.L_k ? begin + share : g.span.L_k;
    backward_keys(values, begin, end, delta, shape.bias_inside, scratch, grad_q);
    if (shape.splits == 1) finish_grad_q(args, g, shape, grad_q);
  });
  if (shape.splits > 1)
    parallel_tasks(pool, shape.groups, [&](int64_t group, int64_t) {
      const Group<T> g(c, attention_span(c, group / c.H_kv), group % c.H_kv);
      finish_grad_q(args, g, shape, partials + group * shape.splits * shape.partial);
    });
  if (args.grad_bias != nullptr && !shape.bias_inside)
    shared_grad_bias<T, Products>(args, memory, floats, pool);
  if (args.grad_sink != nullptr) grad_sink<T>(args, deltas, shape.rows, pool);
}
