// fp16 and bf16 to fp32 and back. Included by vec-inl.h only.

// 16-bit floats: widened on load, rounded to nearest even on store.

FASTDL_INLINE Vec widen(VecHalfBits bits, BFloat16) {
  return reinterpret_cast<Vec>(__builtin_convertvector(bits, VecBits) << 16);
}

// The bf16 nearest to each lane in its upper half, the lower half is anything; NaN has every bit set.
FASTDL_INLINE VecBits rounded_to_upper_half(Vec v) {
  const VecBits bits = reinterpret_cast<VecBits>(v);
  return (bits + 0x7fff + ((bits >> 16) & 1)) | reinterpret_cast<VecBits>(v != v);
}

FASTDL_INLINE VecHalfBits narrow(Vec v, BFloat16) {
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
