// activation(scale y + bias + residual) over values of one channel or pixels of all: what follows a
// convolution. Included by foreach_isa.h sources only, after bias_relu_maxpool_window-inl.h and
// common/cpu/math_activation-inl.h: no include guard.

// V of `left` values, at most a vector.
template <class T>
FASTDL_INLINE typename Compute<T>::V load_values(const T* from, int64_t left) {
  constexpr int64_t lanes = sizeof(typename Compute<T>::V) / sizeof(typename Compute<T>::Scalar);
  return left >= lanes ? load(from) : load_first(from, static_cast<int>(left));
}

template <class T, class V>
FASTDL_INLINE void store_values(T* to, V v, int64_t left) {
  constexpr int64_t lanes = sizeof(V) / sizeof(typename Compute<T>::Scalar);
  __builtin_expect(left >= lanes, 1) ? store(to, v) : store_first(to, v, static_cast<int>(left));
}

template <bool kRelu, class T, class V>
FASTDL_INLINE V closed_where_negative(V v) {
  if constexpr (!kRelu) return v;
  return select(at_most(v, splat<V, typename Compute<T>::Scalar>(LargestClosed<T>::value)), V{},
                v);  // keeps NaN
}

// `count` values of one channel; `to` may be `from`.
template <bool kResidual, bool kRelu, class T>
FASTDL_INLINE void finish_channel(const T* from, typename Compute<T>::Scalar scale,
                                  typename Compute<T>::Scalar bias, const T* residual, int64_t count, T* to) {
  using V = typename Compute<T>::V;
  using Scalar = typename Compute<T>::Scalar;
  constexpr int64_t lanes = sizeof(V) / sizeof(Scalar);
  const V scales = splat<V, Scalar>(scale), biases = splat<V, Scalar>(bias);
  for (int64_t i = 0; i < count; i += lanes) {
    V v = load_values(from + i, count - i) * scales + biases;
    if constexpr (kResidual) v += load_values(residual + i, count - i);
    store_values(to + i, closed_where_negative<kRelu, T>(v), count - i);
  }
}

// One pixel of C channels, in place.
template <bool kResidual, bool kRelu, class T>
FASTDL_INLINE void finish_pixel(T* y, const typename Compute<T>::Scalar* scale,
                                const typename Compute<T>::Scalar* bias, const T* residual, int64_t C) {
  constexpr int64_t lanes = sizeof(typename Compute<T>::V) / sizeof(typename Compute<T>::Scalar);
  for (int64_t c = 0; c < C; c += lanes) {
    auto v = load_values(y + c, C - c) * load(scale + c) + load(bias + c);
    if constexpr (kResidual) v += load_values(residual + c, C - c);
    store_values(y + c, closed_where_negative<kRelu, T>(v), C - c);
  }
}

template <Activation kActivation, class T>
void activate_each(T* values, int64_t count) {
  if constexpr (sizeof(T) == sizeof(double)) {
    for (int64_t i = 0; i < count; ++i) values[i] = activate<kActivation>(values[i]);
  } else {
    for (int64_t i = 0; i < count; i += kLanes)
      store_values(values + i, activate<kActivation>(load_values(values + i, count - i)), count - i);
  }
}

// ReLU and ReLU6 limit a value where it is stored.
FASTDL_INLINE bool is_rectified(Activation activation) {
  return activation == Activation::kRelu || activation == Activation::kRelu6;
}
FASTDL_INLINE float lowest(Activation activation) { return is_rectified(activation) ? 0 : -__builtin_inff(); }
FASTDL_INLINE float highest(Activation activation) {
  return activation == Activation::kRelu6 ? 6 : __builtin_inff();
}

// What is neither nothing nor a ReLU, of values just stored: they are in L1, and the sums keep their
// registers.
template <class T>
__attribute__((noinline)) void activate_values(T* values, int64_t count, Activation activation) {
  switch (activation) {
    case Activation::kNone:
    case Activation::kRelu:
      return;
    case Activation::kGelu:
      return activate_each<Activation::kGelu>(values, count);
    case Activation::kGeluTanh:
      return activate_each<Activation::kGeluTanh>(values, count);
    case Activation::kSilu:
      return activate_each<Activation::kSilu>(values, count);
    case Activation::kTanh:
      return activate_each<Activation::kTanh>(values, count);
    case Activation::kSigmoid:
      return activate_each<Activation::kSigmoid>(values, count);
    case Activation::kRelu6:
      return activate_each<Activation::kRelu6>(values, count);
    case Activation::kHardswish:
      return activate_each<Activation::kHardswish>(values, count);
  }
}
