// The derivatives of the activations for V = Vec (fp32 and 16-bit storage) and V = double, and dropout.
// Included after common/cpu/math_activation-inl.h and philox-inl.h.

// A NaN passes its gradient, as in torch.
FASTDL_INLINE Vec zero_where_closed(Vec output, Vec grad) {
  return select(at_most(output, zero()), zero(), grad);
}
FASTDL_INLINE double zero_where_closed(double output, double grad) { return output <= 0 ? 0 : grad; }

FASTDL_INLINE Vec gelu_slope(Vec x) {
  const Vec tail = normal_tail(magnitude(x)), chance = select(x < zero(), tail, set1(1.0f) - tail);
  const Vec power = exp2_or_zero(set1(-0.5f * kLog2E) * x * x);
  return fma(x * set1(static_cast<float>(0.5 * kSqrtTwoOverPi)), power, chance);
}
FASTDL_INLINE double gelu_slope(double x) {
  return 0.5 * (1 + __builtin_erf(x * kSqrtHalf)) + x * (0.5 * kSqrtTwoOverPi) * __builtin_exp(-0.5 * x * x);
}

// grad * activation'(x); `saved` is the output, or for gelu and silu x.
template <Activation kActivation, class V>
FASTDL_INLINE V activate_backward(V grad, V saved) {
  const V one = constant<V>(1), half = constant<V>(0.5);
  if constexpr (kActivation == Activation::kRelu) return zero_where_closed(saved, grad);
  if constexpr (kActivation == Activation::kTanh) return grad * (one - saved * saved);
  if constexpr (kActivation == Activation::kSigmoid) return grad * (saved * (one - saved));
  if constexpr (kActivation == Activation::kSilu) {
    const V s = sigmoid(saved);
    return grad * (s * (one + saved * (one - s)));
  }
  if constexpr (kActivation == Activation::kGelu) return grad * gelu_slope(saved);
  if constexpr (kActivation == Activation::kGeluTanh) {
    const V square = saved * saved;
    const V t = tanh(constant<V>(kSqrtTwoOverPi) * (saved + constant<V>(kGeluCubic) * square * saved));
    const V slope = constant<V>(kSqrtTwoOverPi) * (one + constant<V>(3 * kGeluCubic) * square);
    return grad * (half * (one + t) + half * saved * (one - t * t) * slope);
  }
  return grad;
}

// The words of Philox for elements [begin, begin + n), n at most kMost, in `of(i)`.
template <int kMost>
struct DropoutWords {
  uint32_t words[kMost + 8 + 4 * kLanes];
  int64_t skipped = 0;
  void draw(const Dropout& dropout, int64_t begin, int64_t n) {
    skipped = begin % 4;
    philox_words(static_cast<uint64_t>(begin / 4), (skipped + n + 3) / 4, dropout.seed, words);
  }
  const uint32_t* of(int64_t i) const { return words + skipped + i; }
};

// value * scale where the word keeps it, 0 where not.
FASTDL_INLINE Vec drop(Vec value, const uint32_t* words, uint32_t threshold, Vec scale) {
  VecBits w;
  std::memcpy(&w, words, sizeof(w));
  return select(reinterpret_cast<VecInt>(w < threshold), zero(), value * scale);
}
FASTDL_INLINE double drop(double value, const uint32_t* words, uint32_t threshold, double scale) {
  return *words < threshold ? 0 : value * scale;
}

// How T is walked: kStep elements a time as V.
template <class T>
struct Walk {
  typedef Vec V;
  static constexpr int kStep = kLanes;
  FASTDL_INLINE V get(const T* p, int n) { return n == kLanes ? load(p) : load_first(p, n); }
  FASTDL_INLINE void put(T* p, V v, int n) { n == kLanes ? store(p, v) : store_first(p, v, n); }
};
template <>
struct Walk<double> {
  typedef double V;
  static constexpr int kStep = 1;
  FASTDL_INLINE V get(const double* p, int) { return *p; }
  FASTDL_INLINE void put(double* p, V v, int) { *p = v; }
};
