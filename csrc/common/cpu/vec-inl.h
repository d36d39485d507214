// A vector of FASTDL_VEC_BYTES / 4 floats for the instruction set being compiled. Included by foreach_isa.h
// only, once per instruction set, inside its namespace: no include guard. Intrinsics live here and nowhere
// else.

constexpr int kLanes = FASTDL_VEC_BYTES / 4;

// Vector registers, what a tile of sums must fit in.
constexpr int kRegisters = FASTDL_ISA >= FASTDL_ISA_AVX512 || FASTDL_NEON ? 32 : 16;

typedef float Vec __attribute__((vector_size(FASTDL_VEC_BYTES)));
typedef float VecUnaligned __attribute__((vector_size(FASTDL_VEC_BYTES), aligned(4), may_alias));
typedef int32_t VecInt __attribute__((vector_size(FASTDL_VEC_BYTES)));
typedef uint32_t VecBits __attribute__((vector_size(FASTDL_VEC_BYTES)));
typedef double VecDouble __attribute__((vector_size(FASTDL_VEC_BYTES)));
typedef double VecDoubleUnaligned __attribute__((vector_size(FASTDL_VEC_BYTES), aligned(8), may_alias));
typedef int64_t VecLong __attribute__((vector_size(FASTDL_VEC_BYTES)));
typedef uint8_t VecBytes __attribute__((vector_size(kLanes)));
typedef uint8_t VecBytesOfDouble __attribute__((vector_size(kLanes / 2)));
typedef uint16_t VecHalfBits __attribute__((vector_size(FASTDL_VEC_BYTES / 2)));
typedef uint16_t VecHalfBitsUnaligned
    __attribute__((vector_size(FASTDL_VEC_BYTES / 2), aligned(2), may_alias));

#if FASTDL_EMULATED
#include "common/cpu/avx512_emulation-inl.h"
#endif

FASTDL_INLINE Vec set1(float x) { return x - Vec{}; }
FASTDL_INLINE Vec zero() { return Vec{}; }

// a * b + c, one rounding where the instruction set has FMA
FASTDL_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if FASTDL_EMULATED
  return fma_of_halves(a, b, c);
#else
  return a * b + c;
#endif
}

// sum += a * b. An instruction by name: GCC 12 moves the loads of an unrolled loop of fma() before it and
// spills the sums.
FASTDL_INLINE void accumulate(Vec& sum, Vec a, Vec b) {
#if FASTDL_ISA >= FASTDL_ISA_AVX2 && !FASTDL_EMULATED
  asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
  sum = fma(a, b, sum);
#endif
}

FASTDL_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecUnaligned*>(p); }
FASTDL_INLINE void store(float* p, Vec v) { *reinterpret_cast<VecUnaligned*>(p) = v; }

// Lane i is lane from(i) of a, b, which follow each other. from: a lambda without captures, so that every
// lane is a constant.
template <class V, class From, int... i>
FASTDL_INLINE V shuffle(V a, V b, From from, std::integer_sequence<int, i...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, from(i)...);
#else
  return __builtin_shuffle(a, b, decltype(a == b){from(i)...});  // all that GCC has before 12
#endif
}
template <class From>
FASTDL_INLINE Vec shuffle(Vec a, Vec b, From from) {
  return shuffle(a, b, from, std::make_integer_sequence<int, kLanes>());
}

// mask ? a : b, lane by lane; mask lanes are 0 or -1
FASTDL_INLINE Vec select(VecInt mask, Vec a, Vec b) { return mask ? a : b; }
FASTDL_INLINE VecInt select(VecInt mask, VecInt a, VecInt b) { return mask ? a : b; }
FASTDL_INLINE VecBits select(VecInt mask, VecBits a, VecBits b) { return mask ? a : b; }
// Bitwise, as for at_most.
FASTDL_INLINE VecLong select(VecLong mask, VecLong a, VecLong b) { return (mask & a) | (~mask & b); }
FASTDL_INLINE VecDouble select(VecLong mask, VecDouble a, VecDouble b) {
  return reinterpret_cast<VecDouble>(
      select(mask, reinterpret_cast<VecLong>(a), reinterpret_cast<VecLong>(b)));
}

// The larger; of equals, or if either is NaN, b.
FASTDL_INLINE Vec max(Vec a, Vec b) {
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  return _mm512_maskz_max_ps(0xffff, a, b);  // the plain one warns in GCC 12
#elif FASTDL_ISA == FASTDL_ISA_AVX2
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

// The smaller; of equals, or if either is NaN, b.
FASTDL_INLINE Vec min(Vec a, Vec b) {
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  return _mm512_maskz_min_ps(0xffff, a, b);
#elif FASTDL_ISA == FASTDL_ISA_AVX2
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

// a <= b, false where either is NaN.
FASTDL_INLINE VecInt at_most(Vec a, Vec b) { return a <= b; }
FASTDL_INLINE VecLong at_most(VecDouble a, VecDouble b) {
#if FASTDL_ISA == FASTDL_ISA_BASELINE && !FASTDL_NEON
  // GCC 12 fails on a comparison of 64-bit lanes for SSE2.
  VecLong mask;
  for (int i = 0; i < kLanes / 2; ++i) mask[i] = a[i] <= b[i] ? -1 : 0;
  return mask;
#else
  return a <= b;
#endif
}

// best = v and where = k in the lanes where v is larger or NaN: the first maximum wins, the last NaN wins.
FASTDL_INLINE void keep_max(Vec& best, VecInt& where, Vec v, VecInt k) {
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  const __mmask16 take = _mm512_cmp_ps_mask(v, best, _CMP_GT_OQ) | _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  best = _mm512_mask_mov_ps(best, take, v);
  where = reinterpret_cast<VecInt>(
      _mm512_mask_mov_epi32(reinterpret_cast<__m512i>(where), take, reinterpret_cast<__m512i>(k)));
#else
  const VecInt take = (v > best) | (v != v);
  best = select(take, v, best);
  where = select(take, k, where);
#endif
}
FASTDL_INLINE void keep_max(VecDouble& best, VecLong& where, VecDouble v, VecLong k) {
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  const __mmask8 take = _mm512_cmp_pd_mask(v, best, _CMP_GT_OQ) | _mm512_cmp_pd_mask(v, v, _CMP_UNORD_Q);
  best = _mm512_mask_mov_pd(best, take, v);
  where = reinterpret_cast<VecLong>(
      _mm512_mask_mov_epi64(reinterpret_cast<__m512i>(where), take, reinterpret_cast<__m512i>(k)));
#else
  const VecLong take = ~at_most(v, best) & (at_most(best, best) | ~at_most(v, v));
  best = select(take, v, best);
  where = select(take, k, where);
#endif
}

// The largest; NaN if any is NaN.
FASTDL_INLINE Vec max_of_4(Vec a, Vec b, Vec c, Vec d) {
  const Vec best = max(max(a, b), max(c, d));
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  const __mmask16 nan = _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q) | _mm512_cmp_ps_mask(c, d, _CMP_UNORD_Q);
  return _mm512_mask_mov_ps(best, nan, set1(__builtin_nanf("")));
#elif FASTDL_ISA == FASTDL_ISA_AVX2
  return _mm256_or_ps(best,
                      _mm256_or_ps(_mm256_cmp_ps(a, b, _CMP_UNORD_Q), _mm256_cmp_ps(c, d, _CMP_UNORD_Q)));
#else
  return select((a != a) | (b != b) | (c != c) | (d != d), set1(__builtin_nanf("")), best);
#endif
}

#if FASTDL_ISA >= FASTDL_ISA_AVX512
// The lanes of `table` that the lowest four bits of `at` number.
FASTDL_INLINE Vec table_of_16(Vec table, Vec at) {
  return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(at), table);
}
// v 2^(the largest integer up to n), or 0 where x < least.
FASTDL_INLINE Vec times_power_of_2_or_0(Vec v, Vec n, Vec x, float least) {
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, set1(least), _CMP_NLT_UQ), v, n);
}
#endif

FASTDL_INLINE bool any(VecInt mask) {
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask)) != 0;
#elif FASTDL_ISA == FASTDL_ISA_AVX2
  return _mm256_movemask_ps(reinterpret_cast<__m256>(mask)) != 0;
#elif FASTDL_NEON
  return vmaxvq_u32(reinterpret_cast<uint32x4_t>(mask)) != 0;
#else
  int32_t all = 0;
  for (int i = 0; i < kLanes; ++i) all |= mask[i];
  return all != 0;
#endif
}

// Whether no lane is NaN or infinite.
FASTDL_INLINE bool is_finite(Vec v) {
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  return _mm512_cmp_ps_mask(v - v, v - v, _CMP_UNORD_Q) == 0;
#else
  return !any(v - v != zero());
#endif
}

#include "common/cpu/vec_half-inl.h"

template <class Half>
FASTDL_INLINE Vec load(const Half* p) {
  return widen(*reinterpret_cast<const VecHalfBitsUnaligned*>(p), Half{});
}
template <class Half>
FASTDL_INLINE void store(Half* p, Vec v) {
  *reinterpret_cast<VecHalfBitsUnaligned*>(p) = narrow(v, Half{});
}

FASTDL_INLINE VecDouble load(const double* p) { return *reinterpret_cast<const VecDoubleUnaligned*>(p); }
FASTDL_INLINE void store(double* p, VecDouble v) { *reinterpret_cast<VecDoubleUnaligned*>(p) = v; }

template <int... i>
FASTDL_INLINE VecInt lane_numbers(std::integer_sequence<int, i...>) {
  return VecInt{i...};
}
// Lane i is -1 where i < n.
FASTDL_INLINE VecInt first_lanes(int n) {
  return lane_numbers(std::make_integer_sequence<int, kLanes>()) < n;
}

// The first n lanes, 0 <= n <= kLanes; the rest are 0. Nothing past p + n is touched.
FASTDL_INLINE Vec load_first(const float* p, int n) {
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#elif FASTDL_ISA == FASTDL_ISA_AVX2
  return _mm256_maskload_ps(p, reinterpret_cast<__m256i>(first_lanes(n)));
#else
  // Copies of known sizes: memcpy of any size is a call.
  if (n == kLanes) return load(p);
  Vec v = zero();
  if (n & 2) std::memcpy(&v, p, 8);
  if (n & 1) v[n & 2] = p[n & 2];
  return v;
#endif
}
FASTDL_INLINE void store_first(float* p, Vec v, int n) {
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
#elif FASTDL_ISA == FASTDL_ISA_AVX2
  _mm256_maskstore_ps(p, reinterpret_cast<__m256i>(first_lanes(n)), v);
#else
  if (n == kLanes) return store(p, v);
  if (n & 2) std::memcpy(p, &v, 8);
  if (n & 1) p[n & 2] = v[n & 2];
#endif
}
template <class Half>
FASTDL_INLINE Vec load_first(const Half* p, int n) {
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  const __m256i bits = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p);
  return widen(reinterpret_cast<VecHalfBits>(bits), Half{});
#else
  VecHalfBits bits = {};
  std::memcpy(&bits, p, static_cast<size_t>(n) * 2);
  return widen(bits, Half{});
#endif
}
template <class Half>
FASTDL_INLINE void store_first(Half* p, Vec v, int n) {
  const VecHalfBits bits = narrow(v, Half{});
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1), reinterpret_cast<__m256i>(bits));
#else
  std::memcpy(p, &bits, static_cast<size_t>(n) * 2);
#endif
}
FASTDL_INLINE VecDouble load_first(const double* p, int n) {
  VecDouble v = {};
  std::memcpy(&v, p, static_cast<size_t>(n) * 8);
  return v;
}
FASTDL_INLINE void store_first(double* p, VecDouble v, int n) {
  std::memcpy(p, &v, static_cast<size_t>(n) * 8);
}

// The first n elements, 0 beyond; n may be anything.
template <class T>
FASTDL_INLINE Vec load_some(const T* p, int64_t n) {
  return n >= kLanes ? load(p) : n > 0 ? load_first(p, static_cast<int>(n)) : zero();
}

#include "common/cpu/vec_bytes-inl.h"

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

#include "common/cpu/vec_pairs-inl.h"

// rows[i][j] -> rows[j][i] for kLanes x kLanes: log2(kLanes) rounds of two-source shuffles.
template <int kStep>
FASTDL_INLINE void transpose_round(Vec (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & kStep) continue;
    const Vec a = rows[i], b = rows[i + kStep];
    rows[i] = shuffle(a, b, [](int lane) { return lane & kStep ? lane - kStep + kLanes : lane; });
    rows[i + kStep] = shuffle(a, b, [](int lane) { return lane & kStep ? lane + kLanes : lane + kStep; });
  }
}
FASTDL_INLINE void transpose(Vec (&rows)[kLanes]) {
  transpose_round<1>(rows);
  transpose_round<2>(rows);
  if constexpr (kLanes >= 8) transpose_round<4>(rows);
  if constexpr (kLanes >= 16) transpose_round<8>(rows);
}
