// x_0 and the result of a step, element by element; and noise alone.

template <class T>
void step_piece(const DiffusionStep& a, const float* c, const SamplePlan& plan, int64_t sample, int64_t begin,
                int64_t end) {
  using V = typename Vector<T>::type;
  const Terms<T> t(a, c, plan);
  over_sample<T>(
      a, sample, begin, end,
      [&](const T*(&in)[kStepInputs], T*(&out)[kStepOutputs], int64_t count, int64_t first, int64_t) {
        constexpr int w = kWidth<T>;
        const T* history = in[kInHistory];
        T *prev = out[kOutPrev], *x_0_out = out[kOutX0];
        for_quads(a, t, in, count, first, [&](int64_t i, const Quad<T>& q) {
          V x_0[kQuad], sum[kQuad];
          raw_x_0(t, q, x_0);
          if (t.clamped)
            for (int k = 0; k < kQuad; ++k) x_0[k] = clamp(x_0[k], -t.high, t.high);
          if (t.divided)
            for (int k = 0; k < kQuad; ++k) x_0[k] = x_0[k] / t.divide;
          if (x_0_out)
            for (int k = 0; k < kQuad; ++k) store(x_0_out + i + k * w, x_0[k]);
          if (!prev) return;
          for (int k = 0; k < kQuad; ++k)
            sum[k] = fma(t.c[kNoise], q.n[k],
                         fma(t.c[kModel], q.m[k], fma(t.c[kX0], x_0[k], t.c[kSample] * q.x[k])));
          if (history)
            for (int k = 0; k < kQuad; ++k) sum[k] = fma(t.c[kHistory], load(history + i + k * w), sum[k]);
          for (int k = 0; k < kQuad; ++k) store(prev + i + k * w, sum[k]);
        });
      });
}

template <class T>
void step(const DiffusionStep& given, const ThreadPool& pool) {
  using S = typename Vector<T>::scalar;
  DiffusionStep a = given;
  if (a.value)
    for (int64_t i = 0; i < (share_a_row(a.rows) ? 1 : a.samples); ++i)
      a.value[i] = coefficients(a.rows, i)[kValue];
  if (a.samples * a.sample_size == 0) return;
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
  T* output = static_cast<T*>(a.output);
  parallel_pieces(pool, 1, a.count, kNoisePiece, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += kGroup) {
      float made[kGroup];
      T rest[kGroup];
      noise_group(a.seed, first, made);
      T* target = first + kGroup <= end ? output + first : rest;
      for (int j = 0; j < kGroup; j += kWidth<T>) store(target + j, widened(made + j, V{}));
      if (target == rest) std::memcpy(output + first, rest, static_cast<size_t>(end - first) * sizeof(T));
    }
  });
}
