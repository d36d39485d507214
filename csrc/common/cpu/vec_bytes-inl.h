// Integers 0 .. 255 stored as bytes, one a lane. Included by vec-inl.h only.

// GCC 12 would convert between bytes and 32 bits lane by lane.
FASTDL_INLINE VecInt widen(VecBytes bytes) {
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  return reinterpret_cast<VecInt>(_mm512_cvtepu8_epi32(reinterpret_cast<__m128i>(bytes)));
#elif FASTDL_ISA == FASTDL_ISA_AVX2
  return reinterpret_cast<VecInt>(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(reinterpret_cast<int64_t>(bytes))));
#elif FASTDL_NEON
  return __builtin_convertvector(bytes, VecInt);
#else
  const __m128i low = _mm_cvtsi32_si128(reinterpret_cast<int32_t>(bytes)), none = _mm_setzero_si128();
  return reinterpret_cast<VecInt>(_mm_unpacklo_epi16(_mm_unpacklo_epi8(low, none), none));
#endif
}
FASTDL_INLINE VecBytes narrow(VecInt v) {
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  return reinterpret_cast<VecBytes>(_mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(v)));
#elif FASTDL_ISA == FASTDL_ISA_AVX2
  const __m256i both = reinterpret_cast<__m256i>(v);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
  return reinterpret_cast<VecBytes>(_mm_cvtsi128_si64(_mm_packus_epi16(words, words)));
#elif FASTDL_NEON
  return __builtin_convertvector(v, VecBytes);
#else
  const __m128i words = _mm_packs_epi32(reinterpret_cast<__m128i>(v), _mm_setzero_si128());
  return reinterpret_cast<VecBytes>(_mm_cvtsi128_si32(_mm_packus_epi16(words, words)));
#endif
}
FASTDL_INLINE VecLong widen(VecBytesOfDouble bytes) { return __builtin_convertvector(bytes, VecLong); }
FASTDL_INLINE VecBytesOfDouble narrow(VecLong v) { return __builtin_convertvector(v, VecBytesOfDouble); }

FASTDL_INLINE VecInt load_bytes(const uint8_t* p, VecInt) {
  VecBytes bytes;
  std::memcpy(&bytes, p, sizeof(bytes));
  return widen(bytes);
}
FASTDL_INLINE VecLong load_bytes(const uint8_t* p, VecLong) {
  VecBytesOfDouble bytes;
  std::memcpy(&bytes, p, sizeof(bytes));
  return widen(bytes);
}
FASTDL_INLINE void store_bytes(uint8_t* p, VecInt v) {
  const VecBytes bytes = narrow(v);
  std::memcpy(p, &bytes, sizeof(bytes));
}
FASTDL_INLINE void store_bytes(uint8_t* p, VecLong v) {
  const VecBytesOfDouble bytes = narrow(v);
  std::memcpy(p, &bytes, sizeof(bytes));
}
FASTDL_INLINE VecInt load_bytes_first(const uint8_t* p, int n, VecInt) {
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  const __m128i bytes = _mm_maskz_loadu_epi8(static_cast<__mmask16>((1u << n) - 1), p);
  return widen(reinterpret_cast<VecBytes>(bytes));
#else
  VecBytes bytes = {};
  std::memcpy(&bytes, p, static_cast<size_t>(n));
  return widen(bytes);
#endif
}
FASTDL_INLINE VecLong load_bytes_first(const uint8_t* p, int n, VecLong) {
  VecBytesOfDouble bytes = {};
  std::memcpy(&bytes, p, static_cast<size_t>(n));
  return widen(bytes);
}
FASTDL_INLINE void store_bytes_first(uint8_t* p, VecInt v, int n) {
  const VecBytes bytes = narrow(v);
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  const __mmask16 mask = static_cast<__mmask16>((1u << n) - 1);
  _mm_mask_storeu_epi8(p, mask, reinterpret_cast<__m128i>(bytes));
#else
  std::memcpy(p, &bytes, static_cast<size_t>(n));
#endif
}
FASTDL_INLINE void store_bytes_first(uint8_t* p, VecLong v, int n) {
  const VecBytesOfDouble bytes = narrow(v);
  std::memcpy(p, &bytes, static_cast<size_t>(n));
}

// The same in the bits of a Vec, so that they move through the same transposes as floats.
struct ByteBits {
  uint8_t bits;
};

FASTDL_INLINE Vec load(const ByteBits* p) { return reinterpret_cast<Vec>(load_bytes(&p->bits, VecInt{})); }
FASTDL_INLINE Vec load_first(const ByteBits* p, int n) {
  return reinterpret_cast<Vec>(load_bytes_first(&p->bits, n, VecInt{}));
}
FASTDL_INLINE void store(ByteBits* p, Vec v) { store_bytes(&p->bits, reinterpret_cast<VecInt>(v)); }
FASTDL_INLINE void store_first(ByteBits* p, Vec v, int n) {
  store_bytes_first(&p->bits, reinterpret_cast<VecInt>(v), n);
}
