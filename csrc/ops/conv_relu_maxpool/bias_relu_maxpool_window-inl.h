// Where pooling windows lie, and the rules of the maximum and of the ReLU that every CPU kernel follows.
// Included by foreach_isa.h sources only: no include guard.

// Arithmetic of a storage type: fp64 in fp64, everything else in fp32.
template <class T>
struct Compute {
  using Scalar = float;
  using V = Vec;
  using I = VecInt;
};
template <>
struct Compute<double> {
  using Scalar = double;
  using V = VecDouble;
  using I = VecLong;
};

// The largest positive number that is stored as zero: rounding must not open a closed ReLU.
template <class T>
struct LargestClosed {
  static constexpr float value = 0;
};
template <>
struct LargestClosed<Float16> {
  static constexpr float value = 0x1p-25f;
};
template <>
struct LargestClosed<BFloat16> {
  static constexpr float value = 0x1p-134f;
};

template <class V, class Scalar>
FASTDL_INLINE V splat(Scalar x) {
  return x - V{};
}

// relu(best + bias); `where` becomes kReluClosed where nothing passes.
template <class V, class I>
FASTDL_INLINE void bias_relu(V& best, I& where, V bias, V largest_closed) {
  best += bias;
  const I closed = at_most(best, largest_closed);
  best = select(closed, V{}, best);
  where = select(closed, I{} + kReluClosed, where);
}
template <class T, class V, class I>
FASTDL_INLINE void bias_relu(V& best, I& where, V bias) {
  bias_relu(best, where, bias, splat<V, typename Compute<T>::Scalar>(LargestClosed<T>::value));
}

template <class T>
FASTDL_INLINE float to_scalar(T x) {
  return to_float(x);
}
FASTDL_INLINE double to_scalar(double x) { return x; }
template <class T>
FASTDL_INLINE void from_scalar(T* p, float x) {
  from_float(p, x);
}
FASTDL_INLINE void from_scalar(double* p, double x) { *p = x; }

struct Range {
  int64_t begin, end;
};

// The k in [0, taps) whose positions origin + k * dilation lie in [0, size).
FASTDL_INLINE Range taps_inside(int64_t origin, int64_t dilation, int64_t taps, int64_t size) {
  Range r;
  r.begin = origin < 0 ? (dilation - 1 - origin) / dilation : 0;
  r.end = origin < size ? (size - 1 - origin) / dilation + 1 : 0;
  if (r.end > taps) r.end = taps;
  if (r.begin > r.end) r.begin = r.end;
  return r;
}

FASTDL_INLINE bool is_2x2_stride_2(const PoolGeometry& p) {
  return p.size[0] == 2 && p.size[1] == 2 && p.stride[0] == 2 && p.stride[1] == 2 && p.padding[0] == 0 &&
         p.padding[1] == 0 && p.dilation[0] == 1 && p.dilation[1] == 1;
}

FASTDL_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// [N, C, H, W] one row after another; where both formats describe the same memory, this is true as well.
FASTDL_INLINE bool is_contiguous(int64_t C, int64_t H, int64_t W, const int64_t* strides) {
  return (W == 1 || strides[3] == 1) && (H == 1 || strides[2] == W) && (C == 1 || strides[1] == H * W);
}

// Work is cut by size alone, never by the number of threads: sums come out the same on every machine.
constexpr int64_t kTaskElements = 16384;
