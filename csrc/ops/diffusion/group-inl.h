// The unit of the diffusion kernels: one vector of a group, which is as many elements as one call of the
// vector Philox gives normal deviates.

constexpr int kGroup = 8 * kLanes;

template <class T>
struct Vector {
  typedef Vec type;
  typedef float scalar;
};
template <>
struct Vector<double> {
  typedef VecDouble type;
  typedef double scalar;
};
template <class T>
constexpr int kWidth = FASTDL_VEC_BYTES / static_cast<int>(sizeof(typename Vector<T>::scalar));

// NaN is torch's.
FASTDL_INLINE Vec splat(double x, Vec) { return set1(x == x ? static_cast<float>(x) : __builtin_nanf("")); }
FASTDL_INLINE VecDouble splat(double x, VecDouble) { return x - VecDouble{}; }
FASTDL_INLINE VecDouble fma(VecDouble a, VecDouble b, VecDouble c) { return a * b + c; }

// NaN stays NaN.
FASTDL_INLINE Vec clamp(Vec v, Vec low, Vec high) { return min(high, max(low, v)); }
FASTDL_INLINE VecDouble clamp(VecDouble v, VecDouble low, VecDouble high) {
  for (int i = 0; i < kLanes / 2; ++i) {
    if (v[i] < low[i]) v[i] = low[i];
    if (v[i] > high[i]) v[i] = high[i];
  }
  return v;
}
// v where |x| <= limit, else 0, also for a NaN in x.
FASTDL_INLINE Vec within(Vec x, Vec limit, Vec v) { return select((x <= limit) & (x >= -limit), v, zero()); }
FASTDL_INLINE VecDouble within(VecDouble x, VecDouble limit, VecDouble v) {
  for (int i = 0; i < kLanes / 2; ++i)
    if (!(x[i] <= limit[i] && x[i] >= -limit[i])) v[i] = 0;
  return v;
}

// Two vectors of elements in the order that costs least: bf16 by even and odd places, others one half after
// the other. A step treats all elements alike.
template <class T, class V>
FASTDL_INLINE void load_two(const T* p, V& a, V& b) {
  a = load(p), b = load(p + kWidth<T>);
}
FASTDL_INLINE void load_two(const BFloat16* p, Vec& a, Vec& b) { load_pairs(p, kLanes, a, b); }

template <class T, class V>
FASTDL_INLINE void store_two(T* p, V a, V b) {
  store(p, a), store(p + kWidth<T>, b);
}
// Rounds to nearest even. A NaN here comes from a bf16, from `splat` or from arithmetic: its lower half is 0,
// and it rounds to itself.
FASTDL_INLINE void store_two(BFloat16* p, Vec a, Vec b) {
  typedef uint16_t Halves __attribute__((vector_size(FASTDL_VEC_BYTES)));
  typedef int16_t SignedHalves __attribute__((vector_size(FASTDL_VEC_BYTES)));
  constexpr std::make_integer_sequence<int, 2 * kLanes> lanes;
  const auto from_a_and_b = [](int lane) { return lane & 1 ? 2 * kLanes + lane : lane; };
  const VecBits even = reinterpret_cast<VecBits>(a), odd = reinterpret_cast<VecBits>(b);
  const Halves upper =
      shuffle(reinterpret_cast<Halves>(even >> 16), reinterpret_cast<Halves>(odd), from_a_and_b, lanes);
  const Halves lower =
      shuffle(reinterpret_cast<Halves>(even), reinterpret_cast<Halves>(odd << 16), from_a_and_b, lanes);
  // up where the lower half is over 0x8000, or is it and the upper one is odd; compared as signed numbers
  const SignedHalves up =
      reinterpret_cast<SignedHalves>(lower ^ 0x8000) > -reinterpret_cast<SignedHalves>(upper & 1);
  const Halves rounded = upper - reinterpret_cast<Halves>(up);
  std::memcpy(p, &rounded, sizeof(rounded));
}

// The same elements of T's two vectors, in memory of another type.
template <class T, class V>
FASTDL_INLINE void load_two_floats(const float* p, T, V& a, V& b) {
  load_two(p, a, b);
}
FASTDL_INLINE void load_two_floats(const float* p, BFloat16, Vec& a, Vec& b) {
  deinterleave(load(p), load(p + kLanes), a, b);
}
FASTDL_INLINE void load_two_floats(const float* p, double, VecDouble& a, VecDouble& b) {
  constexpr int w = kLanes / 2;
  for (int i = 0; i < w; ++i) a[i] = p[i], b[i] = p[w + i];
}
template <class T, class S, class V>
FASTDL_INLINE void store_two_widened(S* p, T, V a, V b) {
  store_two(p, a, b);
}
FASTDL_INLINE void store_two_widened(float* p, BFloat16, Vec even, Vec odd) {
  Vec a, b;
  interleave(even, odd, a, b);
  store_two(p, a, b);
}

// The noise of elements `first` .. first + kGroup - 1.
__attribute__((noinline)) void noise_group(const int64_t* seed, int64_t first, float* out) {
  const uint64_t key = static_cast<uint64_t>(seed[0]), offset = static_cast<uint64_t>(seed[1]);
  const uint64_t block = static_cast<uint64_t>(first) >> 2;
  const int shift = static_cast<int>(first & 3);
  // Out of step with the counters the group ends in the next ones.
  float both[2 * kGroup];
  normals(block, key, offset, shift ? both : out);
  if (!shift) return;
  normals(block + kGroup / 4, key, offset, both + kGroup);
  std::memcpy(out, both + shift, sizeof(float) * kGroup);
}

// The coefficients of a sample.
FASTDL_INLINE const float* coefficients(const TableRows& rows, int64_t sample) {
  const int64_t row = rows.row_of ? rows.row_of[sample * rows.row_stride] : rows.row;
  return rows.table + row * kColumns;
}

FASTDL_INLINE bool share_a_row(const TableRows& rows) { return !rows.row_of || rows.row_stride == 0; }

// f(sample, begin, end) over pieces of at most `piece` elements of each of `samples` samples.
template <class F>
void parallel_pieces(const ThreadPool& pool, int64_t samples, int64_t size, int64_t piece, const F& f) {
  const int64_t pieces = (size + piece - 1) / piece;
  parallel_tasks(pool, samples * pieces, [&](int64_t task, int64_t) {
    const int64_t sample = task / pieces, begin = task % pieces * piece;
    f(sample, begin, begin + piece < size ? begin + piece : size);
  });
}

// Long enough to hide the hand-out, short enough for two threads to share a small latent.
constexpr int64_t kPiece = 16384, kNoisePiece = 4096;

template <class T>
FASTDL_INLINE T* at(T* p, int64_t offset) {
  return p ? p + offset : nullptr;
}

// Runs whole(pointers, count) on the whole groups of `count` elements, then on copies of the rest, which fill
// a group. `in` and `out` point to pointers, null where a tensor is absent.
template <class T, int kIn, int kOut, class F>
FASTDL_INLINE void with_padded_rest(const T* (&in)[kIn], T* (&out)[kOut], int64_t count, const F& whole) {
  const int64_t groups = count / kGroup * kGroup, rest = count - groups;
  if (groups) whole(0, groups);
  if (!rest) return;
  const size_t bytes = static_cast<size_t>(rest) * sizeof(T);
  T copies_in[kIn][kGroup] = {}, copies_out[kOut][kGroup];
  T* targets[kOut];
  for (int i = 0; i < kIn; ++i)
    if (in[i]) {
      std::memcpy(copies_in[i], in[i] + groups, bytes);
      in[i] = copies_in[i];
    }
  for (int i = 0; i < kOut; ++i) {
    targets[i] = at(out[i], groups);
    if (out[i]) out[i] = copies_out[i];
  }
  whole(groups, kGroup);
  for (int i = 0; i < kOut; ++i)
    if (targets[i]) std::memcpy(targets[i], copies_out[i], bytes);
}

// The same without copies, where an element may be done twice: the rest is the end of the last whole group
// that fits.
template <class T, int kIn, int kOut, class F>
FASTDL_INLINE void with_overlapping_rest(const T* (&in)[kIn], T* (&out)[kOut], int64_t count,
                                         const F& whole) {
  const int64_t groups = count / kGroup * kGroup, last = count - kGroup;
  if (groups == 0 || groups == count) return with_padded_rest(in, out, count, whole);
  whole(0, groups);
  for (int i = 0; i < kIn; ++i) in[i] = at(in[i], last);
  for (int i = 0; i < kOut; ++i) out[i] = at(out[i], last);
  whole(last, kGroup);
}
