// x_0 and the result of a step, element by element; and noise alone.

// The sum of whole groups. Where x_0 itself is not written, it is multiplied already.
template <unsigned kKnown, class T>
void step_groups(const DiffusionStep& a, const Terms<T>& t, const T* const (&in)[kStepInputs],
                 T* const (&out)[kStepOutputs], int64_t count, int64_t first) {
  using V = typename Vector<T>::type;
  for_quads<kKnown>(a, t, in, count, first, [&](int64_t i, const Quad<T>& q) {
    V sum[kQuad];
    const auto add = [&](unsigned part, Column column, const V(&v)[kQuad]) {
      if (has<kKnown>(t.parts, part))
        for (int k = 0; k < kQuad; ++k) sum[k] = fma(t.c[column], v[k], sum[k]);
    };
    if (has<kKnown>(t.parts, kNeedsX0)) {
      raw_x_0<kKnown>(t, q, sum);
      if (has<kKnown>(t.parts, kClamps))
        for (int k = 0; k < kQuad; ++k) sum[k] = clamp(sum[k], -t.high, t.high);
      if (has<kKnown>(t.parts, kDivides))
        for (int k = 0; k < kQuad; ++k) sum[k] = sum[k] / t.divide;
      if (has<kKnown>(t.parts, kWritesX0)) {
        store_quad(out[kOutX0] + i, sum);
        if (!has<kKnown>(t.parts, kWritesPrev)) return;
        for (int k = 0; k < kQuad; ++k) sum[k] *= t.c[kX0];
      }
      add(kAddsSample, kSample, q.x);
    } else {
      for (int k = 0; k < kQuad; ++k) sum[k] = t.c[kSample] * q.x[k];
    }
    add(kAddsModel, kModel, q.m);
    add(kReadsNoise | kMakesNoise, kNoise, q.n);
    if (has<kKnown>(t.parts, kHasHistory)) {
      V history[kQuad];
      load_quad(in[kInHistory] + i, history);
      add(kHasHistory, kHistory, history);
    }
    store_quad(out[kOutPrev] + i, sum);
  });
}

// The loop of the first set that is the step's, or of any.
template <unsigned... kCommon>
struct CommonSteps {
  template <class T>
  static void run(const DiffusionStep& a, const Terms<T>& t, const T* const (&in)[kStepInputs],
                  T* const (&out)[kStepOutputs], int64_t count, int64_t first) {
    const bool done =
        ((t.parts == kCommon && (step_groups<kCommon>(a, t, in, out, count, first), true)) || ...);
    if (!done) step_groups<kAnyParts>(a, t, in, out, count, first);
  }
};
constexpr unsigned kAddNoise = kReadsNoise | kWritesPrev, kFlowMatch = kHasModel | kAddsModel | kWritesPrev;
constexpr unsigned kFromX0 = kHasModel | kNeedsX0 | kClamps | kWritesPrev;
constexpr unsigned kDdim = kFromX0 | kAddsModel, kDdpm = kFromX0 | kAddsSample | kReadsNoise;
typedef CommonSteps<kAddNoise, kFlowMatch, kDdim, kDdim | kReadsNoise, kDdim | kHasConditional,
                    kDdim | kHasConditional | kReadsNoise, kDdpm, kDdpm | kHasConditional, kDdim | kWritesX0>
    Steps;

template <class T>
void step_piece(const DiffusionStep& a, const float* c, const SamplePlan& plan, int64_t sample, int64_t begin,
                int64_t end) {
  const Terms<T> t(a, c, plan, a.x_0 || c[kX0] == 0 ? 1.0 : c[kX0] / plan.divide);
  const T* in[kStepInputs];
  T* out[kStepOutputs];
  const int64_t first = sample * a.sample_size + begin;
  point(a, first, in, out);
  with_overlapping_rest(in, out, end - begin, [&](int64_t offset, int64_t count) {
    Steps::run<T>(a, t, in, out, count, first + offset);
  });
}

template <class T>
void step(const DiffusionStep& given, const ThreadPool& pool) {
  using S = typename Vector<T>::scalar;
  DiffusionStep a = given;
  if (a.value)
    for (int64_t i = 0; i < (share_a_row(a.rows) ? 1 : a.samples); ++i)
      a.value[i] = coefficients(a.rows, i)[kValue];
  if (a.samples * a.sample_size == 0 || !(a.prev || a.x_0)) return;
  const int64_t piece = a.seed && !a.noise ? kNoisePiece : kPiece;
  const bool rescaled = a.guided && a.rescale != 0, threshold = a.limit == Limit::kThreshold;
  const SamplePlan plain = {1.0, a.limit_value, 1.0};
  if (!rescaled && !threshold) {
    if (share_a_row(a.rows)) a.sample_size *= a.samples, a.samples = 1;
    parallel_pieces(pool, a.samples, a.sample_size, piece, [&](int64_t sample, int64_t begin, int64_t end) {
      step_piece<T>(a, coefficients(a.rows, sample), plain, sample, begin, end);
    });
    return;
  }
  const size_t room = threshold ? static_cast<size_t>(a.sample_size + kGroup) * sizeof(S) : 0;
  const size_t plan_bytes = (static_cast<size_t>(a.samples) * sizeof(SamplePlan) + 63) & ~size_t{63};
  char* memory = static_cast<char*>(thread_scratch(plan_bytes + room * static_cast<size_t>(pool.size())));
  SamplePlan* plans = reinterpret_cast<SamplePlan*>(memory);
  parallel_tasks(pool, a.samples, [&](int64_t sample, int64_t worker) {
    SamplePlan plan = plain;
    if (rescaled) plan.scale = rescale_of<T>(a, plain, sample);
    if (threshold) {
      S* scratch = reinterpret_cast<S*>(memory + plan_bytes + room * static_cast<size_t>(worker));
      plan.limit = plan.divide = threshold_of<T>(a, coefficients(a.rows, sample), plan, sample, scratch);
    }
    plans[sample] = plan;
  });
  parallel_pieces(pool, a.samples, a.sample_size, piece, [&](int64_t sample, int64_t begin, int64_t end) {
    step_piece<T>(a, coefficients(a.rows, sample), plans[sample], sample, begin, end);
  });
}

template <class T>
void noise(const NormalNoise& a, const ThreadPool& pool) {
  using V = typename Vector<T>::type;
  constexpr int w = kWidth<T>;
  T* output = static_cast<T*>(a.output);
  parallel_pieces(pool, 1, a.count, kNoisePiece, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += kGroup) {
      float made[kGroup];
      T rest[kGroup];
      noise_group(a.seed, first, made);
      T* target = first + kGroup <= end ? output + first : rest;
      for (int j = 0; j < kGroup; j += 2 * w) {
        V n[2];
        load_two_floats(made + j, T{}, n[0], n[1]);
        store_two(target + j, n[0], n[1]);
      }
      if (target == rest) std::memcpy(output + first, rest, static_cast<size_t>(end - first) * sizeof(T));
    }
  });
}
