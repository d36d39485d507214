// What needs a whole sample before its first element is done: the rescale of guidance, and the threshold.

struct SamplePlan {
  double scale;   // of the guided model output
  double limit;   // x_0 is clamped to [-limit, limit]
  double divide;  // and divided by this
};

enum StepInput { kInSample, kInModel, kInConditional, kInHistory, kInNoise, kStepInputs };
enum StepOutput { kOutPrev, kOutX0, kStepOutputs };

template <class T>
void point(const DiffusionStep& a, int64_t offset, const T* (&in)[kStepInputs], T* (&out)[kStepOutputs]) {
  const T* model = static_cast<const T*>(a.model_output);
  in[kInSample] = at(static_cast<const T*>(a.sample), offset);
  in[kInModel] = at(model, offset);
  in[kInConditional] = a.guided ? model + a.samples * a.sample_size + offset : nullptr;
  in[kInHistory] = at(static_cast<const T*>(a.history), offset);
  in[kInNoise] = at(static_cast<const T*>(a.noise), offset);
  out[kOutPrev] = at(static_cast<T*>(a.prev), offset);
  out[kOutX0] = at(static_cast<T*>(a.x_0), offset);
}

// Everything a vector of the step is made of, loop invariants as vectors.
template <class T>
struct Terms {
  typedef typename Vector<T>::type V;
  V c[kColumns], guidance, scale, high, divide;
  bool rescaled, clamped, divided;

  Terms(const DiffusionStep& a, const float* coefficients, const SamplePlan& plan) {
    for (int i = 0; i < kColumns; ++i) c[i] = splat(coefficients[i], V{});
    guidance = splat(a.guidance, V{}), scale = splat(plan.scale, V{});
    high = splat(plan.limit, V{}), divide = splat(plan.divide, V{});
    rescaled = plan.scale != 1.0, clamped = a.limit != Limit::kNone;
    divided = a.limit == Limit::kThreshold;
  }
};

// u + guidance (c - u)
template <class V>
FASTDL_INLINE V guided(V u, V c, V guidance) {
  return fma(guidance, c - u, u);
}

// Branches on what a call has are taken once for this many vectors; more would not stay in registers.
constexpr int kQuad = 4;

// The inputs of kQuad vectors; absent ones are 0.
template <class T>
struct Quad {
  typedef typename Vector<T>::type V;
  V x[kQuad], m[kQuad], n[kQuad];
};

template <class T>
FASTDL_INLINE void load_model(const Terms<T>& t, const T* const (&in)[kStepInputs], int64_t i, Quad<T>& q) {
  constexpr int w = kWidth<T>;
  const T *model = in[kInModel], *conditional = in[kInConditional];
  for (int k = 0; k < kQuad; ++k) q.m[k] = load(model + i + k * w);
  if (conditional)
    for (int k = 0; k < kQuad; ++k) q.m[k] = guided(q.m[k], load(conditional + i + k * w), t.guidance);
  if (t.rescaled)
    for (int k = 0; k < kQuad; ++k) q.m[k] *= t.scale;
}

// f(i, quad) for each quad of whole groups; elements count from `first` for the noise.
template <class T, class F>
FASTDL_INLINE void for_quads(const DiffusionStep& a, const Terms<T>& t, const T* const (&in)[kStepInputs],
                             int64_t count, int64_t first, const F& f) {
  using V = typename Vector<T>::type;
  constexpr int w = kWidth<T>;
  float made[kGroup];
  const T *sample = in[kInSample], *noise = in[kInNoise];
  const bool makes = a.seed && !noise;
  for (int64_t group = 0; group < count; group += kGroup) {
    if (makes) noise_group(a.seed, first + group, made);
    for (int j = 0; j < kGroup; j += kQuad * w) {
      const int64_t i = group + j;
      Quad<T> q = {};
      for (int k = 0; k < kQuad; ++k) q.x[k] = load(sample + i + k * w);
      if (in[kInModel]) load_model(t, in, i, q);
      if (noise)
        for (int k = 0; k < kQuad; ++k) q.n[k] = load(noise + i + k * w);
      else if (makes)
        for (int k = 0; k < kQuad; ++k) q.n[k] = widened(made + j + k * w, V{});
      f(i, q);
    }
  }
}

// x_0 before it is limited.
template <class T>
FASTDL_INLINE void raw_x_0(const Terms<T>& t, const Quad<T>& q, typename Vector<T>::type (&x_0)[kQuad]) {
  for (int k = 0; k < kQuad; ++k)
    x_0[k] = fma(t.c[kX0Noise], q.n[k], fma(t.c[kX0Model], q.m[k], t.c[kX0Sample] * q.x[k]));
}

// f(vectors...) over a sample: `whole` sees (offset, in, out, count) of each run of whole groups.
template <class T, class F>
FASTDL_INLINE void over_sample(const DiffusionStep& a, int64_t sample, int64_t begin, int64_t end,
                               const F& f) {
  const T* in[kStepInputs];
  T* out[kStepOutputs];
  const int64_t first = sample * a.sample_size + begin;
  point(a, first, in, out);
  with_padded_rest(in, out, end - begin, [&](int64_t offset, int64_t count) {
    f(in, out, count, first + offset, end - begin - offset);
  });
}

// phi std(c) / std(m) + 1 - phi over one sample: means first, then squared deviations.
template <class T>
double rescale_of(const DiffusionStep& a, const SamplePlan& plan, int64_t sample) {
  using V = typename Vector<T>::type;
  if (a.sample_size < 2) return 1.0;
  const float none[kColumns] = {};
  const Terms<T> t(a, none, plan);
  double mean[2] = {}, squares[2] = {};
  for (int pass = 0; pass < 2; ++pass) {
    double total[2] = {};
    const V mean_c = splat(mean[0], V{}), mean_m = splat(mean[1], V{});
    over_sample<T>(
        a, sample, 0, a.sample_size,
        [&](const T*(&in)[kStepInputs], T*(&)[kStepOutputs], int64_t count, int64_t, int64_t left) {
          for (int64_t group = 0; group < count; group += kGroup) {
            V sum_c = {}, sum_m = {};
            for (int64_t i = group; i < group + kGroup; i += kWidth<T>) {
              const V c = load(in[kInConditional] + i);
              V d_c = c - mean_c, d_m = guided(load(in[kInModel] + i), c, t.guidance) - mean_m;
              for (int lane = 0; lane < kWidth<T> && left - i < kWidth<T>; ++lane)
                if (i + lane >= left) d_c[lane] = d_m[lane] = 0;
              sum_c += pass ? d_c * d_c : d_c;
              sum_m += pass ? d_m * d_m : d_m;
            }
            for (int lane = 0; lane < kWidth<T>; ++lane) total[0] += sum_c[lane], total[1] += sum_m[lane];
          }
        });
    for (int k = 0; k < 2; ++k)
      (pass ? squares : mean)[k] = pass ? total[k] : total[k] / static_cast<double>(a.sample_size);
  }
  // No deviation: the ratio is 1. NaN stays.
  const double ratio = squares[1] > 0    ? __builtin_sqrt(squares[0] / squares[1])
                       : squares[1] == 0 ? 1.0
                                         : squares[1];
  return a.rescale * ratio + (1.0 - a.rescale);
}

// Moves the k-th smallest to place k, nothing larger before it, nothing smaller behind it.
template <class S>
void select_kth(S* values, int64_t count, int64_t k) {
  int64_t low = 0, high = count - 1;
  while (low < high) {
    const S a = values[low], b = values[low + (high - low) / 2], c = values[high];
    const S pivot = a < b ? (b < c ? b : (a < c ? c : a)) : (a < c ? a : (b < c ? c : b));
    int64_t i = low, j = high;
    while (i <= j) {
      while (values[i] < pivot) ++i;
      while (pivot < values[j]) --j;
      if (i > j) break;
      const S swapped = values[i];
      values[i++] = values[j];
      values[j--] = swapped;
    }
    if (k <= j)
      high = j;
    else if (k >= i)
      low = i;
    else
      return;
  }
}

// The sample's threshold: the quantile of |x_0|, between 1 and the largest; NaN if any x_0 is. `scratch` has
// room for a sample and a group.
template <class T>
double threshold_of(const DiffusionStep& a, const float* c, const SamplePlan& plan, int64_t sample,
                    typename Vector<T>::scalar* scratch) {
  using V = typename Vector<T>::type;
  using S = typename Vector<T>::scalar;
  const Terms<T> t(a, c, plan);
  S* filled = scratch;
  over_sample<T>(a, sample, 0, a.sample_size,
                 [&](const T*(&in)[kStepInputs], T*(&)[kStepOutputs], int64_t count, int64_t first, int64_t) {
                   for_quads(a, t, in, count, first, [&](int64_t i, const Quad<T>& q) {
                     V x_0[kQuad];
                     raw_x_0(t, q, x_0);
                     for (int k = 0; k < kQuad; ++k) store(filled + i + k * kWidth<T>, x_0[k]);
                   });
                   filled += count;
                 });
  bool nan = false;
  for (int64_t i = 0; i < a.sample_size; ++i) {
    nan |= scratch[i] != scratch[i];
    scratch[i] = scratch[i] < 0 ? -scratch[i] : scratch[i];
  }
  if (nan) return __builtin_nan("");
  const double position = a.quantile * static_cast<double>(a.sample_size - 1);
  const int64_t low = static_cast<int64_t>(position);
  select_kth(scratch, a.sample_size, low);
  S next = scratch[low];
  if (low + 1 < a.sample_size) {
    next = scratch[low + 1];
    for (int64_t i = low + 2; i < a.sample_size; ++i) next = scratch[i] < next ? scratch[i] : next;
  }
  double s = scratch[low] + (next - scratch[low]) * static_cast<S>(position - static_cast<double>(low));
  const double most = a.limit_value > 1.0 ? a.limit_value : 1.0;
  if (s < 1.0) s = 1.0;
  return s > most ? most : s;
}
