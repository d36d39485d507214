// Pairs of neighbouring elements, taken apart and put together. Included by vec-inl.h only.

// even[i] = a[2 i] and odd[i] = a[2 i + 1] of the 2 kLanes elements a, b; and back.
FASTDL_INLINE void deinterleave(Vec a, Vec b, Vec& even, Vec& odd) {
  even = shuffle(a, b, [](int lane) { return 2 * lane; });
  odd = shuffle(a, b, [](int lane) { return 2 * lane + 1; });
}
FASTDL_INLINE void interleave(Vec even, Vec odd, Vec& a, Vec& b) {
  a = shuffle(even, odd, [](int lane) { return lane / 2 + lane % 2 * kLanes; });
  b = shuffle(even, odd, [](int lane) { return (kLanes + lane) / 2 + lane % 2 * kLanes; });
}

// The same of 2 kLanes elements in memory.
FASTDL_INLINE void load_deinterleaved(const float* p, Vec& even, Vec& odd) {
#if FASTDL_ISA == FASTDL_ISA_AVX2
  // Halves brought where their lanes stay: GCC's own shuffles cross them, which takes Zen six operations.
  const Vec a = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + 8), 1);
  const Vec b = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + 4)), _mm_loadu_ps(p + 12), 1);
  even = _mm256_shuffle_ps(a, b, 0x88);
  odd = _mm256_shuffle_ps(a, b, 0xdd);
#else
  deinterleave(load(p), load(p + kLanes), even, odd);
#endif
}

// Elements p[0], p[2], ... where lane i holds that of even_lane(i), and a vector of such lanes in order: AVX2
// has no cheap way to bring elements from one half to the other.
#if FASTDL_ISA == FASTDL_ISA_AVX2
FASTDL_INLINE Vec load_even(const float* p) { return _mm256_shuffle_ps(load(p), load(p + kLanes), 0x88); }
constexpr int even_lane(int lane) { return (lane & 1) | (lane & 2) << 1 | (lane & 4) >> 1; }
FASTDL_INLINE Vec even_in_order(Vec v) {
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8));
}
#else
FASTDL_INLINE Vec load_even(const float* p) {
  Vec even, odd;
  deinterleave(load(p), load(p + kLanes), even, odd);
  return even;
}
constexpr int even_lane(int lane) { return lane; }
FASTDL_INLINE Vec even_in_order(Vec v) { return v; }
#endif

// The first n pairs of a row, 0 <= n <= kLanes: their first and their second elements.
FASTDL_INLINE void load_pairs(const float* p, int n, Vec& first, Vec& second) {
  if (n == kLanes) return load_deinterleaved(p, first, second);
  const int low = 2 * n < kLanes ? 2 * n : kLanes;
  deinterleave(load_first(p, low), load_first(p + low, 2 * n - low), first, second);
}
// A pair of 16-bit floats is one 32-bit lane.
template <class Half>
FASTDL_INLINE VecBits load_bit_pairs(const Half* p, int n) {
  if (n != kLanes) return reinterpret_cast<VecBits>(load_first(reinterpret_cast<const float*>(p), n));
  VecBits pairs;
  std::memcpy(&pairs, p, sizeof(pairs));
  return pairs;
}
FASTDL_INLINE void load_pairs(const BFloat16* p, int n, Vec& first, Vec& second) {
  const VecBits pairs = load_bit_pairs(p, n);
  first = reinterpret_cast<Vec>(pairs << 16);
  second = reinterpret_cast<Vec>(pairs & 0xffff0000);
}
FASTDL_INLINE void load_pairs(const Float16* p, int n, Vec& first, Vec& second) {
  const VecBits pairs = load_bit_pairs(p, n);
  first = widen(__builtin_convertvector(pairs & 0xffff, VecHalfBits), Float16{});
  second = widen(__builtin_convertvector(pairs >> 16, VecHalfBits), Float16{});
}

// from[0], from[2], ...; nothing past the last of them is read.
template <class T>
FASTDL_INLINE void copy_even(const T* from, int64_t count, float* to) {
  if (count <= kLanes) {
    for (int64_t j = 0; j < count; ++j) to[j] = to_float(from[2 * j]);
    return;
  }
  Vec even, odd;
  for (int64_t j = 0; j + kLanes < count; j += kLanes) {
    load_pairs(from + 2 * j, kLanes, even, odd);
    store(to + j, even);
  }
  // The last ones, some once more, as the second of pairs.
  const int64_t last = count - kLanes;
  load_pairs(from + 2 * last - 1, kLanes, even, odd);
  store(to + last, odd);
}

// The first n elements as they lie in memory, one a 32-bit lane.
FASTDL_INLINE VecBits load_bits(const float* p, int n) {
  return reinterpret_cast<VecBits>(n == kLanes ? load(p) : load_first(p, n));
}
template <class Half>
FASTDL_INLINE VecBits load_bits(const Half* p, int n) {
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  const __m256i bits = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p);
  return widen(reinterpret_cast<VecHalfBits>(bits));
#else
  VecHalfBits bits = {};
  if (n == kLanes)
    std::memcpy(&bits, p, sizeof(bits));
  else
    std::memcpy(&bits, p, static_cast<size_t>(n) * 2);
  return widen(bits);
#endif
}

// The same back: kLanes elements.
FASTDL_INLINE void store_bits(float* p, VecBits bits) { store(p, reinterpret_cast<Vec>(bits)); }
template <class Half>
FASTDL_INLINE void store_bits(Half* p, VecBits bits) {
  const VecHalfBits narrow = __builtin_convertvector(bits, VecHalfBits);
  std::memcpy(p, &narrow, sizeof(narrow));
}

// Writes the first n pairs (first[i], second[i]) of elements as load_bits gives them.
FASTDL_INLINE void store_bit_pairs(float* p, int n, VecBits first, VecBits second) {
  Vec a, b;
  interleave(reinterpret_cast<Vec>(first), reinterpret_cast<Vec>(second), a, b);
  if (n == kLanes) {
    store(p, a);
    store(p + kLanes, b);
    return;
  }
  const int low = 2 * n < kLanes ? 2 * n : kLanes;
  store_first(p, a, low);
  store_first(p + low, b, 2 * n - low);
}
template <class Half>
FASTDL_INLINE void store_bit_pairs(Half* p, int n, VecBits first, VecBits second) {
  const VecBits pairs = first | second << 16;
  if (n == kLanes)
    std::memcpy(p, &pairs, sizeof(pairs));
  else
    store_first(reinterpret_cast<float*>(p), reinterpret_cast<Vec>(pairs), n);
}
