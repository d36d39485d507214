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

// What a step has and does. A term whose coefficient is 0 is left out.
enum Part : unsigned {
  kHasModel = 1,
  kHasConditional = 2,
  kRescales = 4,
  kReadsNoise = 8,
  kMakesNoise = 16,
  kHasHistory = 32,
  kNeedsX0 = 64,
  kNoiseInX0 = 128,
  kClamps = 256,
  kDivides = 512,
  kWritesX0 = 1024,
  kWritesPrev = 2048,
  kAddsSample = 4096,
  kAddsModel = 8192,
};
constexpr unsigned kAnyParts = ~0u;

// Loops over the commonest sets of parts are compiled without a branch: their kKnown is that set. The loop
// for kAnyParts asks what the step has.
template <unsigned kKnown>
FASTDL_INLINE bool has(unsigned parts, unsigned part) {
  return (kKnown == kAnyParts ? parts : kKnown) & part;
}

FASTDL_INLINE unsigned parts_of(const DiffusionStep& a, const float* c, const SamplePlan& plan) {
  const bool noise = a.noise || a.seed, x_0 = a.x_0 || c[kX0] != 0;
  unsigned parts = (a.model_output ? kHasModel : 0u) | (a.guided ? kHasConditional : 0u) |
                   (plan.scale != 1.0 ? kRescales : 0u) |
                   (a.noise  ? kReadsNoise
                    : a.seed ? kMakesNoise
                             : 0u) |
                   (a.history ? kHasHistory : 0u) | (a.prev ? kWritesPrev : 0u) |
                   (a.model_output && c[kModel] != 0 ? kAddsModel : 0u);
  if (!x_0) return parts;
  return parts | kNeedsX0 | (noise && c[kX0Noise] != 0 ? kNoiseInX0 : 0u) |
         (a.limit != Limit::kNone ? kClamps : 0u) | (a.x_0 ? kWritesX0 : 0u) |
         (a.x_0 && a.limit == Limit::kThreshold ? kDivides : 0u) | (c[kSample] != 0 ? kAddsSample : 0u);
}

// Everything a vector of the step is made of, loop invariants as vectors. `of_x_0` multiplies x_0 from the
// start.
template <class T>
struct Terms {
  typedef typename Vector<T>::type V;
  V c[kColumns], guidance, scale, high, divide;
  unsigned parts;

  Terms(const DiffusionStep& a, const float* coefficients, const SamplePlan& plan, double of_x_0)
      : parts(parts_of(a, coefficients, plan)) {
    for (int i = 0; i < kColumns; ++i) c[i] = splat(coefficients[i], V{});
    for (int i = kX0Sample; i <= kX0Noise; ++i) c[i] = splat(coefficients[i] * of_x_0, V{});
    guidance = splat(a.guidance, V{}), scale = splat(plan.scale, V{});
    high = splat(plan.limit * (of_x_0 < 0 ? -of_x_0 : of_x_0), V{}), divide = splat(plan.divide, V{});
  }
};

// u + guidance (c - u)
template <class V>
FASTDL_INLINE V guided(V u, V c, V guidance) {
  return fma(guidance, c - u, u);
}

// Vectors done together; more would not stay in registers.
constexpr int kQuad = 4;

template <class T, class V>
FASTDL_INLINE void load_quad(const T* p, V (&v)[kQuad]) {
  for (int k = 0; k < kQuad; k += 2) load_two(p + k * kWidth<T>, v[k], v[k + 1]);
}
template <class T, class V>
FASTDL_INLINE void store_quad(T* p, const V (&v)[kQuad]) {
  for (int k = 0; k < kQuad; k += 2) store_two(p + k * kWidth<T>, v[k], v[k + 1]);
}

// The inputs of kQuad vectors; absent ones are 0.
template <class T>
struct Quad {
  typedef typename Vector<T>::type V;
  V x[kQuad], m[kQuad], n[kQuad];
};

template <unsigned kKnown, class T>
FASTDL_INLINE void load_model(const Terms<T>& t, const T* const (&in)[kStepInputs], int64_t i, Quad<T>& q) {
  load_quad(in[kInModel] + i, q.m);
  if (has<kKnown>(t.parts, kHasConditional)) {
    typename Vector<T>::type conditional[kQuad];
    load_quad(in[kInConditional] + i, conditional);
    for (int k = 0; k < kQuad; ++k) q.m[k] = guided(q.m[k], conditional[k], t.guidance);
  }
  if (has<kKnown>(t.parts, kRescales))
    for (int k = 0; k < kQuad; ++k) q.m[k] *= t.scale;
}

// f(i, quad) for each quad of whole groups; elements count from `first` for the noise.
template <unsigned kKnown, class T, class F>
FASTDL_INLINE void for_quads(const DiffusionStep& a, const Terms<T>& t, const T* const (&in)[kStepInputs],
                             int64_t count, int64_t first, const F& f) {
  constexpr int w = kWidth<T>;
  float made[kGroup];
  for (int64_t group = 0; group < count; group += kGroup) {
    if (has<kKnown>(t.parts, kMakesNoise)) noise_group(a.seed, first + group, made);
    for (int j = 0; j < kGroup; j += kQuad * w) {
      const int64_t i = group + j;
      Quad<T> q = {};
      load_quad(in[kInSample] + i, q.x);
      if (has<kKnown>(t.parts, kHasModel)) load_model<kKnown>(t, in, i, q);
      if (has<kKnown>(t.parts, kReadsNoise)) load_quad(in[kInNoise] + i, q.n);
      if (has<kKnown>(t.parts, kMakesNoise))
        for (int k = 0; k < kQuad; k += 2) load_two_floats(made + j + k * w, T{}, q.n[k], q.n[k + 1]);
      f(i, q);
    }
  }
}

// x_0 before it is limited.
template <unsigned kKnown, class T>
FASTDL_INLINE void raw_x_0(const Terms<T>& t, const Quad<T>& q, typename Vector<T>::type (&x_0)[kQuad]) {
  for (int k = 0; k < kQuad; ++k) x_0[k] = t.c[kX0Sample] * q.x[k];
  if (has<kKnown>(t.parts, kHasModel))
    for (int k = 0; k < kQuad; ++k) x_0[k] = fma(t.c[kX0Model], q.m[k], x_0[k]);
  if (has<kKnown>(t.parts, kNoiseInX0))
    for (int k = 0; k < kQuad; ++k) x_0[k] = fma(t.c[kX0Noise], q.n[k], x_0[k]);
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
  const Terms<T> t(a, none, plan, 1.0);
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
  const Terms<T> t(a, c, plan, 1.0);
  S* filled = scratch;
  over_sample<T>(a, sample, 0, a.sample_size,
                 [&](const T*(&in)[kStepInputs], T*(&)[kStepOutputs], int64_t count, int64_t first, int64_t) {
                   for_quads<kAnyParts>(a, t, in, count, first, [&](int64_t i, const Quad<T>& q) {
                     V x_0[kQuad];
                     raw_x_0<kAnyParts>(t, q, x_0);
                     for (int k = 0; k < kQuad; k += 2)
                       store_two_widened(filled + i + k * kWidth<T>, T{}, x_0[k], x_0[k + 1]);
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
