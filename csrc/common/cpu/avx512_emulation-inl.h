// AVX-512 in vectors that the compiler splits for AVX2: the operations that our sources name, under the names
// of their intrinsics, which they hide. FASTDL_EMULATE_AVX512 asks for them, so that a CPU without AVX-512
// runs the same sources. Included by vec-inl.h only.

typedef float Lanes16 __attribute__((vector_size(64)));
typedef double Lanes8Double __attribute__((vector_size(64)));
typedef int32_t Lanes16Int __attribute__((vector_size(64)));
typedef uint32_t Lanes16Bits __attribute__((vector_size(64)));
typedef uint64_t Lanes8Bits __attribute__((vector_size(64)));

// -1 in the lanes whose bit is set
FASTDL_INLINE Lanes16Int mask_lanes(__mmask16 mask) {
  Lanes16Int lanes;
  for (int i = 0; i < 16; ++i) lanes[i] = mask >> i & 1 ? -1 : 0;
  return lanes;
}
FASTDL_INLINE VecLong mask_lanes_of_8(__mmask8 mask) {
  VecLong lanes;
  for (int i = 0; i < 8; ++i) lanes[i] = mask >> i & 1 ? -1 : 0;
  return lanes;
}
FASTDL_INLINE __mmask16 mask_of(Lanes16Int lanes) {
  __mmask16 mask = 0;
  for (int i = 0; i < 16; ++i) mask |= static_cast<__mmask16>((lanes[i] < 0 ? 1u : 0u) << i);
  return mask;
}

FASTDL_INLINE __m512 _mm512_maskz_max_ps(__mmask16 mask, __m512 a, __m512 b) {
  return mask_lanes(mask) ? (a > b ? a : b) : Lanes16{};
}
FASTDL_INLINE __m512 _mm512_maskz_min_ps(__mmask16 mask, __m512 a, __m512 b) {
  return mask_lanes(mask) ? (a < b ? a : b) : Lanes16{};
}
FASTDL_INLINE __m512 _mm512_maskz_sqrt_ps(__mmask16 mask, __m512 a) {
  Lanes16 root = {};
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) root[i] = __builtin_sqrtf(a[i]);
  return root;
}
FASTDL_INLINE __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int kind) {
  if (kind == _CMP_NLT_UQ) return static_cast<__mmask16>(~mask_of(a < b));
  return mask_of(kind == _CMP_GT_OQ ? (a > b) : (a != a) | (b != b));
}
FASTDL_INLINE __m512 _mm512_permutexvar_ps(__m512i at, __m512 table) {
  const Lanes16Bits lane = reinterpret_cast<Lanes16Bits>(at) & 15;
  Lanes16 found;
  for (int i = 0; i < 16; ++i) found[i] = table[lane[i]];
  return found;
}
FASTDL_INLINE __m512i _mm512_permutexvar_epi16(__m512i at, __m512i a) {
  typedef uint16_t Words32 __attribute__((vector_size(64)));
  const Words32 word = reinterpret_cast<Words32>(at) & 31, from = reinterpret_cast<Words32>(a);
  Words32 found;
  for (int i = 0; i < 32; ++i) found[i] = from[word[i]];
  return reinterpret_cast<__m512i>(found);
}
FASTDL_INLINE __m512 _mm512_maskz_scalef_ps(__mmask16 mask, __m512 v, __m512 n) {
  Lanes16 product = {};
  for (int i = 0; i < 16; ++i) {
    if (!(mask >> i & 1)) continue;
    const float most = n[i] > 300 ? 300.0f : n[i] < -300 ? -300.0f : n[i];
    product[i] = most != most ? most : __builtin_ldexpf(v[i], static_cast<int>(__builtin_floorf(most)));
  }
  return product;
}
FASTDL_INLINE __mmask8 _mm512_cmp_pd_mask(__m512d a, __m512d b, int kind) {
  __mmask8 mask = 0;
  for (int i = 0; i < 8; ++i) {
    const bool holds = kind == _CMP_GT_OQ ? a[i] > b[i] : a[i] != a[i] || b[i] != b[i];
    mask |= static_cast<__mmask8>((holds ? 1u : 0u) << i);
  }
  return mask;
}
FASTDL_INLINE __mmask16 _mm512_movepi32_mask(__m512i a) { return mask_of(reinterpret_cast<Lanes16Int>(a)); }

FASTDL_INLINE __m512 _mm512_mask_mov_ps(__m512 otherwise, __mmask16 mask, __m512 a) {
  return mask_lanes(mask) ? a : otherwise;
}
FASTDL_INLINE __m512i _mm512_mask_mov_epi32(__m512i otherwise, __mmask16 mask, __m512i a) {
  return reinterpret_cast<__m512i>(mask_lanes(mask) ? reinterpret_cast<Lanes16Int>(a)
                                                    : reinterpret_cast<Lanes16Int>(otherwise));
}
FASTDL_INLINE __m512d _mm512_mask_mov_pd(__m512d otherwise, __mmask8 mask, __m512d a) {
  return mask_lanes_of_8(mask) ? a : otherwise;
}
FASTDL_INLINE __m512i _mm512_mask_mov_epi64(__m512i otherwise, __mmask8 mask, __m512i a) {
  const VecLong lanes = mask_lanes_of_8(mask);
  return reinterpret_cast<__m512i>((lanes & reinterpret_cast<VecLong>(a)) |
                                   (~lanes & reinterpret_cast<VecLong>(otherwise)));
}

FASTDL_INLINE __m512i _mm512_set1_epi64(long long x) {
  return reinterpret_cast<__m512i>(Lanes8Bits{} + static_cast<uint64_t>(x));
}
FASTDL_INLINE __m512i _mm512_maskz_srli_epi64(__mmask8 mask, __m512i a, unsigned int count) {
  return reinterpret_cast<__m512i>((reinterpret_cast<Lanes8Bits>(a) >> count) &
                                   reinterpret_cast<Lanes8Bits>(mask_lanes_of_8(mask)));
}
FASTDL_INLINE __m512i _mm512_maskz_mul_epu32(__mmask8 mask, __m512i a, __m512i b) {
  const Lanes8Bits product =
      (reinterpret_cast<Lanes8Bits>(a) & 0xffffffff) * (reinterpret_cast<Lanes8Bits>(b) & 0xffffffff);
  return reinterpret_cast<__m512i>(product & reinterpret_cast<Lanes8Bits>(mask_lanes_of_8(mask)));
}

// Memory behind a clear bit is not touched.
template <class Lane, class Vector, class Mask>
FASTDL_INLINE Vector load_lanes(Mask mask, const void* p) {
  constexpr int kCount = sizeof(Vector) / sizeof(Lane);
  Lane lanes[kCount] = {};
  for (int i = 0; i < kCount; ++i)
    if (mask >> i & 1) std::memcpy(&lanes[i], static_cast<const Lane*>(p) + i, sizeof(Lane));
  Vector v;
  std::memcpy(&v, lanes, sizeof(v));
  return v;
}
template <class Lane, class Vector, class Mask>
FASTDL_INLINE void store_lanes(void* p, Mask mask, const Vector& v) {
  constexpr int kCount = sizeof(Vector) / sizeof(Lane);
  Lane lanes[kCount];
  std::memcpy(lanes, &v, sizeof(v));
  for (int i = 0; i < kCount; ++i)
    if (mask >> i & 1) std::memcpy(static_cast<Lane*>(p) + i, &lanes[i], sizeof(Lane));
}
FASTDL_INLINE __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* p) {
  return load_lanes<float, __m512>(mask, p);
}
FASTDL_INLINE void _mm512_mask_storeu_ps(void* p, __mmask16 mask, __m512 a) {
  store_lanes<float>(p, mask, a);
}
FASTDL_INLINE __m256i _mm256_maskz_loadu_epi16(__mmask16 mask, const void* p) {
  return load_lanes<uint16_t, __m256i>(mask, p);
}
FASTDL_INLINE void _mm256_mask_storeu_epi16(void* p, __mmask16 mask, __m256i a) {
  store_lanes<uint16_t>(p, mask, a);
}
FASTDL_INLINE __m128i _mm_maskz_loadu_epi8(__mmask16 mask, const void* p) {
  return load_lanes<uint8_t, __m128i>(mask, p);
}
FASTDL_INLINE void _mm_mask_storeu_epi8(void* p, __mmask16 mask, __m128i a) {
  store_lanes<uint8_t>(p, mask, a);
}

FASTDL_INLINE __m512i _mm512_cvtepu8_epi32(__m128i a) {
  typedef uint8_t Bytes16 __attribute__((vector_size(16)));
  return reinterpret_cast<__m512i>(__builtin_convertvector(reinterpret_cast<Bytes16>(a), Lanes16Int));
}
FASTDL_INLINE __m512i _mm512_cvtepu16_epi32(__m256i a) {
  typedef uint16_t Words16 __attribute__((vector_size(32)));
  return reinterpret_cast<__m512i>(__builtin_convertvector(reinterpret_cast<Words16>(a), Lanes16Int));
}
FASTDL_INLINE __m128i _mm512_cvtepi32_epi8(__m512i a) {
  typedef uint8_t Bytes16 __attribute__((vector_size(16)));
  return reinterpret_cast<__m128i>(__builtin_convertvector(reinterpret_cast<Lanes16Bits>(a), Bytes16));
}

struct Halves {
  __m256 low, high;
};
struct HalfWords {
  __m128i low, high;
};
FASTDL_INLINE Halves halves_of(__m512 a) {
  Halves halves;
  std::memcpy(&halves, &a, sizeof(halves));
  return halves;
}
FASTDL_INLINE __m512 whole_of(Halves halves) {
  __m512 whole;
  std::memcpy(&whole, &halves, sizeof(whole));
  return whole;
}

// By name: without optimisation the compiler makes none of a product and a sum.
FASTDL_INLINE __m512 fma_of_halves(__m512 a, __m512 b, __m512 c) {
  const Halves x = halves_of(a), y = halves_of(b), z = halves_of(c);
  return whole_of({_mm256_fmadd_ps(x.low, y.low, z.low), _mm256_fmadd_ps(x.high, y.high, z.high)});
}

FASTDL_INLINE __m512 _mm512_cvtph_ps(__m256i a) {
  HalfWords words;
  std::memcpy(&words, &a, sizeof(words));
  return whole_of({_mm256_cvtph_ps(words.low), _mm256_cvtph_ps(words.high)});
}
FASTDL_INLINE __m256i _mm512_cvtps_ph(__m512 a, int) {
  const Halves halves = halves_of(a);
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  const HalfWords words = {_mm256_cvtps_ph(halves.low, kNearest), _mm256_cvtps_ph(halves.high, kNearest)};
  __m256i narrow;
  std::memcpy(&narrow, &words, sizeof(narrow));
  return narrow;
}

// AVX512-BF16: denormals of operands and sums are 0; the odd elements' products are added first.
FASTDL_INLINE Lanes16 flushed_lanes(Lanes16 x) {
  const Lanes16Bits bits = reinterpret_cast<Lanes16Bits>(x);
  return reinterpret_cast<Lanes16>((bits & 0x7f800000) == 0 ? bits & 0x80000000 : bits);
}
FASTDL_INLINE __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  const Lanes16Bits left = reinterpret_cast<Lanes16Bits>(a), right = reinterpret_cast<Lanes16Bits>(b);
  const auto upper = [](Lanes16Bits bits) {
    return flushed_lanes(reinterpret_cast<Lanes16>(bits & 0xffff0000));
  };
  Lanes16 out = flushed_lanes(sum);
  for (int odd = 1; odd >= 0; --odd) {
    const Lanes16 x = upper(odd ? left : left << 16), y = upper(odd ? right : right << 16);
    for (int i = 0; i < 16; ++i) out[i] = __builtin_fmaf(x[i], y[i], out[i]);
    out = flushed_lanes(out);
  }
  return out;
}
FASTDL_INLINE __m512bh _mm512_cvtne2ps_pbh(__m512 high, __m512 low) {
  typedef uint16_t Words16 __attribute__((vector_size(32)));
  const auto nearest = [](Lanes16 x) {
    const Lanes16Bits bits = reinterpret_cast<Lanes16Bits>(flushed_lanes(x));
    const Lanes16Bits even = bits + 0x7fff + (bits >> 16 & 1);
    const Lanes16Bits nan = bits | 0x400000;
    return __builtin_convertvector((x != x ? nan : even) >> 16, Words16);
  };
  struct {
    Words16 low, high;
  } const both = {nearest(low), nearest(high)};
  __m512bh narrow;
  std::memcpy(&narrow, &both, sizeof(narrow));
  return narrow;
}
