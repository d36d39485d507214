// How the recurrent kernels touch memory: whole vectors of units, the last one cut; scratch cut from one
// piece. One thread. Saves nothing.

#ifndef FASTDL_INLINE_MEMBER
#define FASTDL_INLINE_MEMBER inline __attribute__((always_inline))
#endif

// The first n units, 1 <= n <= kLanes; the lanes past them are 0.
template <class S>
FASTDL_INLINE Vec load_units(const S* p, int n) {
  return n == kLanes ? load(p) : load_first(p, n);
}
template <class S>
FASTDL_INLINE void store_units(S* p, Vec v, int n) {
  if (n == kLanes) return store(p, v);
  store_first(p, v, n);
}

// What is left of v after a store as S.
FASTDL_INLINE Vec rounded(Vec v, float) { return v; }
template <class Half>
FASTDL_INLINE Vec rounded(Vec v, Half) {
  return widen(narrow(v, Half{}), Half{});
}

// -1 in the first n lanes.
FASTDL_INLINE VecInt units_mask(int n) {
  VecInt lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return lane < n;
}

// -1 where the byte is not 0.
FASTDL_INLINE VecInt load_keep(const uint8_t* p, int n) {
  return (n == kLanes ? load_bytes(p, VecInt{}) : load_bytes_first(p, n, VecInt{})) != 0;
}

FASTDL_INLINE double sum_lanes(Vec v) {
  double sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}

FASTDL_INLINE int64_t vectors_of(int64_t units) { return (units + kLanes - 1) / kLanes; }
FASTDL_INLINE int64_t padded(int64_t units) { return vectors_of(units) * kLanes; }
FASTDL_INLINE int units_at(int64_t unit, int64_t units) {
  return static_cast<int>(units - unit < kLanes ? units - unit : kLanes);
}

// Scratch memory, handed out in 64-byte steps. Without a base it only counts.
struct Arena {
  char* base;
  size_t used;

  template <class T>
  T* take(int64_t count) {
    T* const taken = reinterpret_cast<T*>(base + used);
    used += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return base == nullptr ? nullptr : taken;
  }
};

// A parameter of `parts` x `units` as floats whose parts are padded to whole vectors with zeros; null ->
// zeros.
template <class S>
void widen_parameter(const void* plain, int64_t parts, int64_t units, float* out) {
  const int64_t stride = padded(units);
  for (int64_t i = 0; i < parts; ++i)
    for (int64_t unit = 0; unit < stride; unit += kLanes) {
      Vec v = zero();
      if (plain != nullptr && unit < units)
        v = load_units(static_cast<const S*>(plain) + i * units + unit, units_at(unit, units));
      store(out + i * stride + unit, v);
    }
}
