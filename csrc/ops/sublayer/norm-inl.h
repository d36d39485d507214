// Computes norm(x + residual) row by row, or one of the two.
// A task takes rows of 32 KB together; a row's sums are its own, whatever the threads. Saves nothing.

FASTDL_INLINE double sum_of_lanes(Vec v) {
  double sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}

// f(vector, offset, lanes) over a row of x + residual.
template <class F>
FASTDL_INLINE void for_row(const float* x, const float* residual, int64_t width, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const Vec v = load(x + i);
    f(residual == nullptr ? v : v + load(residual + i), i, kLanes);
  }
  if (i == width) return;
  const int n = static_cast<int>(width - i);
  const Vec v = load_first(x + i, n);
  f(residual == nullptr ? v : v + load_first(residual + i, n), i, n);
}

static void norm_row(const NormForward& a, const float* x, const float* residual, float* output) {
  const auto put = [&](Vec v, int64_t i, int n) {
    if (n == kLanes) return store(output + i, v);
    store_first(output + i, v, n);
  };
  if (a.weight == nullptr) return for_row(x, residual, a.width, put);
  Vec sum = zero(), square = zero();
  for_row(x, residual, a.width, [&](Vec v, int64_t i, int n) {
    sum += v;
    put(v, i, n);
  });
  const double count = static_cast<double>(a.width);
  const Vec mean = set1(static_cast<float>(sum_of_lanes(sum) / count));
  // of the sums, which lie in output now: the cancellation of one pass would show
  for_row(output, nullptr, a.width, [&](Vec v, int64_t, int n) {
    Vec centred = v - mean;
    if (n < kLanes)
      for (int lane = n; lane < kLanes; ++lane) centred[lane] = 0;
    square = fma(centred, centred, square);
  });
  const Vec rstd = set1(static_cast<float>(1 / __builtin_sqrt(sum_of_lanes(square) / count + a.eps)));
  for_row(output, nullptr, a.width, [&](Vec v, int64_t i, int n) {
    const auto get = [&](const float* p) { return n == kLanes ? load(p + i) : load_first(p + i, n); };
    const Vec scaled = (v - mean) * rstd * get(a.weight);
    put(a.bias == nullptr ? scaled : scaled + get(a.bias), i, n);
  });
}

static void norm(const NormForward& a, const ThreadPool& pool) {
  constexpr int64_t kTask = 8192;  // numbers
  const int64_t together = a.width < kTask ? kTask / a.width : 1;
  parallel_tasks(pool, (a.rows + together - 1) / together, [&](int64_t task, int64_t) {
    const int64_t end = (task + 1) * together < a.rows ? (task + 1) * together : a.rows;
    for (int64_t row = task * together; row < end; ++row) {
      const int64_t at = row * a.width;
      norm_row(a, a.x + at, a.residual == nullptr ? nullptr : a.residual + at, a.output + at);
    }
  });
}

typedef void (*NormFunction)(const NormForward&, const ThreadPool&);
constexpr NormFunction kNorm[] = {norm};
