// fp16 and bf16 to fp32 and back. Included by vec-inl.h only.

// 16-bit floats: widened on load, rounded to nearest even on store.

// GCC 12 would widen in two halves and join them.
FASTDL_INLINE VecBits widen(VecHalfBits bits) {
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  return reinterpret_cast<VecBits>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(bits)));
#elif FASTDL_ISA == FASTDL_ISA_AVX2
  return reinterpret_cast<VecBits>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(bits)));
#else
  return __builtin_convertvector(bits, VecBits);
#endif
}

FASTDL_INLINE Vec widen(VecHalfBits bits, BFloat16) { return reinterpret_cast<Vec>(widen(bits) << 16); }

// The bf16 nearest to each lane in its upper half, the lower half is anything; NaN has every bit set.
FASTDL_INLINE VecBits rounded_to_upper_half(Vec v) {
  const VecBits bits = reinterpret_cast<VecBits>(v);
  return (bits + 0x7fff + ((bits >> 16) & 1)) | reinterpret_cast<VecBits>(v != v);
}

FASTDL_INLINE VecHalfBits narrow(Vec v, BFloat16) {
#if FASTDL_ISA >= FASTDL_ISA_AVX512BF16 && !FASTDL_EMULATED
  // A third of the work where there are no denormals, which it takes for 0.
  constexpr int kDenormal = 0x20;
  if (__builtin_expect(_mm512_fpclass_ps_mask(v, kDenormal) == 0, 1))
    return reinterpret_cast<VecHalfBits>(_mm512_cvtneps_pbh(v));
#endif
  const VecBits halves = rounded_to_upper_half(v) >> 16;
#if FASTDL_ISA == FASTDL_ISA_AVX2
  // GCC masks what the shift has cleared.
  const __m256i both = reinterpret_cast<__m256i>(halves);
  return reinterpret_cast<VecHalfBits>(
      _mm_packus_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1)));
#else
  return __builtin_convertvector(halves, VecHalfBits);
#endif
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
#elif FASTDL_NEON
FASTDL_INLINE Vec widen(VecHalfBits bits, Float16) {
  return vcvt_f32_f16(reinterpret_cast<float16x4_t>(bits));
}
FASTDL_INLINE VecHalfBits narrow(Vec v, Float16) { return reinterpret_cast<VecHalfBits>(vcvt_f16_f32(v)); }
#else
FASTDL_INLINE Vec widen(VecHalfBits bits, Float16) {
  const VecBits half = __builtin_convertvector(bits, VecBits), magnitude = half & 0x7fff;
  const VecInt size = reinterpret_cast<VecInt>(magnitude);
  const VecBits shifted = magnitude << 13;
  const VecBits number = shifted + 0x38000000;
  const Vec subnormal = __builtin_convertvector(size, Vec) * set1(5.9604644775390625e-8f);  // 2^-24
  const VecBits unsigned_bits = select(size > 0x7bff, shifted | 0x7f800000,
                                       select(size < 0x400, reinterpret_cast<VecBits>(subnormal), number));
  return reinterpret_cast<Vec>(unsigned_bits | (half & 0x8000) << 16);
}
FASTDL_INLINE VecHalfBits narrow(Vec v, Float16) {
  const VecBits bits = reinterpret_cast<VecBits>(v), magnitude = bits & 0x7fffffff;
  const VecInt size = reinterpret_cast<VecInt>(magnitude);
  const VecBits number = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // The addition rounds at 2^-24.
  const Vec subnormal = reinterpret_cast<Vec>(magnitude) + set1(0.5f);
  const VecBits finite = select(size < 0x38800000, reinterpret_cast<VecBits>(subnormal) - 0x3f000000, number);
  // From 65520 on it is infinity; NaN keeps its upper bits.
  const VecBits special = select(size > 0x7f800000, (magnitude >> 13 & 0x3ff) | 0x7e00, VecBits{} + 0x7c00);
  const VecBits half = select(size >= 0x477ff000, special, finite) | (bits >> 16 & 0x8000);
  return __builtin_convertvector(half, VecHalfBits);
}
#endif
