// Gradients of a step: linear in the incoming ones; where x_0 was clipped, none passes.

enum BackwardInput {
  kInGradPrev,
  kInGradX0,
  kInClipped,
  kInClippedModel,
  kInClippedConditional,
  kBackwardInputs
};
enum BackwardOutput { kGradSample, kGradModel, kGradConditional, kGradHistory, kGradNoise, kBackwardOutputs };

template <class T>
void backward_groups(const DiffusionStepBackward& a, const float* coefficients,
                     const T* const (&in)[kBackwardInputs], T* const (&out)[kBackwardOutputs],
                     int64_t count) {
  using V = typename Vector<T>::type;
  V c[kColumns];
  for (int i = 0; i < kColumns; ++i) c[i] = splat(coefficients[i], V{});
  const V guidance = splat(a.guidance, V{}), opposite = splat(1.0 - a.guidance, V{});
  const V limit = splat(a.limit_value, V{});
  for (int64_t i = 0; i < count; i += kWidth<T>) {
    V g_prev = {}, g_x0 = {};
    if (in[kInGradPrev]) g_prev = load(in[kInGradPrev] + i);
    if (in[kInGradX0]) g_x0 = load(in[kInGradX0] + i);
    g_x0 = fma(c[kX0], g_prev, g_x0);
    if (a.clipped) {
      V m = {};
      if (in[kInClippedModel]) m = load(in[kInClippedModel] + i);
      if (in[kInClippedConditional]) m = guided(m, load(in[kInClippedConditional] + i), guidance);
      g_x0 = within(fma(c[kX0Model], m, c[kX0Sample] * load(in[kInClipped] + i)), limit, g_x0);
    }
    const V g_model = fma(c[kX0Model], g_x0, c[kModel] * g_prev);
    if (out[kGradSample]) store(out[kGradSample] + i, fma(c[kX0Sample], g_x0, c[kSample] * g_prev));
    if (out[kGradModel]) store(out[kGradModel] + i, out[kGradConditional] ? opposite * g_model : g_model);
    if (out[kGradConditional]) store(out[kGradConditional] + i, guidance * g_model);
    if (out[kGradHistory]) store(out[kGradHistory] + i, c[kHistory] * g_prev);
    if (out[kGradNoise]) store(out[kGradNoise] + i, fma(c[kX0Noise], g_x0, c[kNoise] * g_prev));
  }
}

template <class T>
void backward_piece(const DiffusionStepBackward& a, const float* c, int64_t first, int64_t last) {
  const int64_t half = a.samples * a.sample_size;
  const T* model = static_cast<const T*>(a.model_output);
  T* grad_model = static_cast<T*>(a.grad_model);
  const T* in[kBackwardInputs] = {at(static_cast<const T*>(a.grad_prev), first),
                                  at(static_cast<const T*>(a.grad_x0), first),
                                  at(static_cast<const T*>(a.sample), first), at(model, first),
                                  a.guided ? at(model, half + first) : nullptr};
  T* out[kBackwardOutputs] = {at(static_cast<T*>(a.grad_sample), first), at(grad_model, first),
                              a.guided ? at(grad_model, half + first) : nullptr,
                              at(static_cast<T*>(a.grad_history), first),
                              at(static_cast<T*>(a.grad_noise), first)};
  with_overlapping_rest(in, out, last - first,
                        [&](int64_t, int64_t count) { backward_groups<T>(a, c, in, out, count); });
}

template <class T>
void step_backward(const DiffusionStepBackward& a, const ThreadPool& pool) {
  const bool shared = share_a_row(a.rows);
  const int64_t samples = shared ? 1 : a.samples, size = shared ? a.samples * a.sample_size : a.sample_size;
  if (samples * size == 0) return;
  parallel_pieces(pool, samples, size, kPiece, [&](int64_t sample, int64_t begin, int64_t end) {
    backward_piece<T>(a, coefficients(a.rows, sample), sample * size + begin, sample * size + end);
  });
}
