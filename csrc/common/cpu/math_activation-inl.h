// The activations for V = Vec (fp32 and 16-bit storage) and V = double. Included after vec-inl.h and
// math-inl.h.

template <class V>
FASTDL_INLINE V constant(double c) {
  if constexpr (sizeof(V) == sizeof(double))
    return c;
  else
    return set1(static_cast<float>(c));
}

FASTDL_INLINE double tanh(double x) { return __builtin_tanh(x); }
FASTDL_INLINE double sigmoid(double x) { return 1 / (1 + __builtin_exp(-x)); }
// A NaN passes, as in torch.
FASTDL_INLINE Vec relu(Vec x) { return max(zero(), x); }
FASTDL_INLINE double relu(double x) { return x <= 0 ? 0 : x; }
FASTDL_INLINE Vec at_most_6(Vec x) { return min(set1(6), relu(x)); }
FASTDL_INLINE double at_most_6(double x) { return x > 6 ? 6 : relu(x); }

constexpr double kSqrtHalf = 0.70710678118654752440, kSqrtTwoOverPi = 0.79788456080286535588;
constexpr double kGeluCubic = 0.044715;

// x times the chance that a normal number is below x.
FASTDL_INLINE Vec gelu(Vec x) {
  // |x|, but 14 for infinity, whose product with a tail of 0 would be NaN; for -infinity it is, as in torch.
  const Vec a = max(-x, min(set1(14.0f), x));
  return fma(-a, normal_tail(a), relu(x));
}
FASTDL_INLINE double gelu(double x) { return 0.5 * x * (1 + __builtin_erf(x * kSqrtHalf)); }

template <Activation kActivation, class V>
FASTDL_INLINE V activate(V x) {
  if constexpr (kActivation == Activation::kRelu) return relu(x);
  if constexpr (kActivation == Activation::kTanh) return tanh(x);
  if constexpr (kActivation == Activation::kSigmoid) return sigmoid(x);
  if constexpr (kActivation == Activation::kSilu) return x * sigmoid(x);
  if constexpr (kActivation == Activation::kGelu) return gelu(x);
  if constexpr (kActivation == Activation::kGeluTanh)  // (1 + tanh y) / 2 is sigmoid(2 y)
    return x * sigmoid(constant<V>(2 * kSqrtTwoOverPi) * (x + constant<V>(kGeluCubic) * x * x * x));
  if constexpr (kActivation == Activation::kRelu6) return at_most_6(x);
  if constexpr (kActivation == Activation::kHardswish)
    return x * at_most_6(x + constant<V>(3)) * constant<V>(1.0 / 6);
  return x;
}
