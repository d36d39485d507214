// A vector of FASTDL_VEC_BYTES / 4 floats for the instruction set being compiled. Included by foreach_isa.h
// only, once per instruction set, inside its namespace: no include guard. Intrinsics live here and nowhere
// else.

constexpr int kLanes = FASTDL_VEC_BYTES / 4;

typedef float Vec __attribute__((vector_size(FASTDL_VEC_BYTES)));
typedef float VecUnaligned __attribute__((vector_size(FASTDL_VEC_BYTES), aligned(4), may_alias));
typedef int32_t VecInt __attribute__((vector_size(FASTDL_VEC_BYTES)));
typedef uint32_t VecBits __attribute__((vector_size(FASTDL_VEC_BYTES)));
typedef uint16_t VecHalfBits __attribute__((vector_size(FASTDL_VEC_BYTES / 2)));
typedef uint16_t VecHalfBitsUnaligned
    __attribute__((vector_size(FASTDL_VEC_BYTES / 2), aligned(2), may_alias));

FASTDL_INLINE Vec set1(float x) { return x - Vec{}; }
FASTDL_INLINE Vec zero() { return Vec{}; }

// a * b + c, one rounding where the instruction set has FMA
FASTDL_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }

FASTDL_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecUnaligned*>(p); }
FASTDL_INLINE void store(float* p, Vec v) { *reinterpret_cast<VecUnaligned*>(p) = v; }

// mask ? a : b, lane by lane; mask lanes are 0 or -1
FASTDL_INLINE Vec select(VecInt mask, Vec a, Vec b) { return mask ? a : b; }

// The larger; of equals, or if either is NaN, b.
FASTDL_INLINE Vec max(Vec a, Vec b) {
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  return _mm512_max_ps(a, b);
#elif FASTDL_ISA == FASTDL_ISA_AVX2
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

FASTDL_INLINE bool any(VecInt mask) {
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask)) != 0;
#elif FASTDL_ISA == FASTDL_ISA_AVX2
  return _mm256_movemask_ps(reinterpret_cast<__m256>(mask)) != 0;
#else
  int32_t all = 0;
  for (int i = 0; i < kLanes; ++i) all |= mask[i];
  return all != 0;
#endif
}

// 16-bit floats: widened on load, rounded to nearest even on store.

FASTDL_INLINE Vec widen(VecHalfBits bits, BFloat16) {
  return reinterpret_cast<Vec>(__builtin_convertvector(bits, VecBits) << 16);
}

FASTDL_INLINE VecHalfBits narrow(Vec v, BFloat16) {
  const VecBits bits = reinterpret_cast<VecBits>(v);
  const VecBits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const VecBits quiet_nan = (bits >> 16) | 0x40;
  const VecBits result = reinterpret_cast<VecBits>(v != v ? reinterpret_cast<VecInt>(quiet_nan)
                                                          : reinterpret_cast<VecInt>(rounded));
  return __builtin_convertvector(result, VecHalfBits);
}

#if FASTDL_ISA >= FASTDL_ISA_AVX512
FASTDL_INLINE Vec widen(VecHalfBits bits, Float16) {
  return _mm512_cvtph_ps(reinterpret_cast<__m256i>(bits));
}
FASTDL_INLINE VecHalfBits narrow(Vec v, Float16) {
  return reinterpret_cast<VecHalfBits>(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif FASTDL_ISA == FASTDL_ISA_AVX2
FASTDL_INLINE Vec widen(VecHalfBits bits, Float16) {
  return _mm256_cvtph_ps(reinterpret_cast<__m128i>(bits));
}
FASTDL_INLINE VecHalfBits narrow(Vec v, Float16) {
  return reinterpret_cast<VecHalfBits>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#else
FASTDL_INLINE float half_to_float(uint32_t h) {
  const uint32_t sign = (h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
  float value;
  if (exponent == 31) {
    const uint32_t bits = 0x7f800000 | mantissa << 13;
    std::memcpy(&value, &bits, 4);
  } else if (exponent == 0) {
    value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
  } else {
    const uint32_t bits = (exponent + 112) << 23 | mantissa << 13;
    std::memcpy(&value, &bits, 4);
  }
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits |= sign;
  std::memcpy(&value, &bits, 4);
  return value;
}
FASTDL_INLINE uint16_t float_to_half(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint32_t sign = (bits >> 16) & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00 | ((bits >> 13) & 0x3ff);
  if (bits >= 0x477ff000) return sign | 0x7c00;  // rounds to 65536 or more
  if (bits < 0x38800000) {                       // subnormal: the addition rounds at 2^-24
    float value;
    std::memcpy(&value, &bits, 4);
    value += 0.5f;
    std::memcpy(&bits, &value, 4);
    return sign | static_cast<uint16_t>(bits - 0x3f000000);
  }
  return sign | static_cast<uint16_t>((bits - 0x38000000 + 0xfff + ((bits >> 13) & 1)) >> 13);
}
FASTDL_INLINE Vec widen(VecHalfBits bits, Float16) {
  Vec v;
  for (int i = 0; i < kLanes; ++i) v[i] = half_to_float(bits[i]);
  return v;
}
FASTDL_INLINE VecHalfBits narrow(Vec v, Float16) {
  VecHalfBits bits;
  for (int i = 0; i < kLanes; ++i) bits[i] = float_to_half(v[i]);
  return bits;
}
#endif

template <class Half>
FASTDL_INLINE Vec load(const Half* p) {
  return widen(*reinterpret_cast<const VecHalfBitsUnaligned*>(p), Half{});
}
template <class Half>
FASTDL_INLINE void store(Half* p, Vec v) {
  *reinterpret_cast<VecHalfBitsUnaligned*>(p) = narrow(v, Half{});
}

// The first n lanes, 0 <= n <= kLanes; the rest are 0. Nothing past p + n is touched.
FASTDL_INLINE Vec load_first(const float* p, int n) {
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#else
  Vec v = zero();
  std::memcpy(&v, p, static_cast<size_t>(n) * 4);
  return v;
#endif
}
FASTDL_INLINE void store_first(float* p, Vec v, int n) {
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
#else
  std::memcpy(p, &v, static_cast<size_t>(n) * 4);
#endif
}
template <class Half>
FASTDL_INLINE Vec load_first(const Half* p, int n) {
  VecHalfBits bits = {};
  std::memcpy(&bits, p, static_cast<size_t>(n) * 2);
  return widen(bits, Half{});
}
template <class Half>
FASTDL_INLINE void store_first(Half* p, Vec v, int n) {
  const VecHalfBits bits = narrow(v, Half{});
  std::memcpy(p, &bits, static_cast<size_t>(n) * 2);
}

// One element as float, and back.
FASTDL_INLINE float to_float(float x) { return x; }
template <class Half>
FASTDL_INLINE float to_float(Half x) {
  VecHalfBits bits = {};
  bits[0] = x.bits;
  return widen(bits, Half{})[0];
}
FASTDL_INLINE void from_float(float* p, float x) { *p = x; }
template <class Half>
FASTDL_INLINE void from_float(Half* p, float x) {
  p->bits = narrow(set1(x), Half{})[0];
}

// rows[i][j] -> rows[j][i] for kLanes x kLanes: log2(kLanes) rounds of two-source shuffles.
template <int kStep>
FASTDL_INLINE void transpose_round(Vec (&rows)[kLanes]) {
  VecInt low, high;
  for (int lane = 0; lane < kLanes; ++lane) {
    low[lane] = lane & kStep ? lane - kStep + kLanes : lane;
    high[lane] = lane & kStep ? lane + kLanes : lane + kStep;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & kStep) continue;
    const Vec a = rows[i], b = rows[i + kStep];
    rows[i] = __builtin_shuffle(a, b, low);
    rows[i + kStep] = __builtin_shuffle(a, b, high);
  }
}
FASTDL_INLINE void transpose(Vec (&rows)[kLanes]) {
  transpose_round<1>(rows);
  transpose_round<2>(rows);
  if constexpr (kLanes >= 8) transpose_round<4>(rows);
  if constexpr (kLanes >= 16) transpose_round<8>(rows);
}
