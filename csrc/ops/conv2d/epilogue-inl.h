// scale y + bias + residual, and a ReLU, over values of one channel or pixels of all: what follows a
// convolution. Included by foreach_isa.h sources only, after bias_relu_maxpool_window-inl.h: no include
// guard.

// V of `left` values, at most a vector.
template <class T>
FASTDL_INLINE typename Compute<T>::V load_values(const T* from, int64_t left) {
  constexpr int64_t lanes = sizeof(typename Compute<T>::V) / sizeof(typename Compute<T>::Scalar);
  return left >= lanes ? load(from) : load_first(from, static_cast<int>(left));
}

template <class T, class V>
FASTDL_INLINE void store_values(T* to, V v, int64_t left) {
  constexpr int64_t lanes = sizeof(V) / sizeof(typename Compute<T>::Scalar);
  left >= lanes ? store(to, v) : store_first(to, v, static_cast<int>(left));
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
