// Philox4x32-10 (common/philox.h), kLanes counters at a time. Included after vec-inl.h: no include guard.

// The two halves of the 64-bit products of each lane with `factor`.
FASTDL_INLINE void multiply_wide(VecBits x, uint32_t factor, VecBits& high, VecBits& low) {
  low = x * factor;
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  const __m512i a = reinterpret_cast<__m512i>(x), f = _mm512_set1_epi64(factor);
  const __m512i even = _mm512_mul_epu32(a, f), odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), f);
  high = reinterpret_cast<VecBits>(_mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd));
#elif FASTDL_ISA == FASTDL_ISA_AVX2
  const __m256i a = reinterpret_cast<__m256i>(x), f = _mm256_set1_epi64x(factor);
  const __m256i even = _mm256_mul_epu32(a, f), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), f);
  high = reinterpret_cast<VecBits>(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa));
#else
  for (int i = 0; i < kLanes; ++i) high[i] = static_cast<uint32_t>((uint64_t{x[i]} * factor) >> 32);
#endif
}

// words[4 g + j] = word j of counter (first + g), for `groups` counters; writes whole vectors, so `words` has
// room for groups rounded up to kLanes.
inline void philox_words(uint64_t first, int64_t groups, uint64_t seed, uint32_t* words) {
  VecBits lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = static_cast<uint32_t>(i);
  for (int64_t g = 0; g < groups; g += kLanes, first += kLanes) {
    const VecBits low = lane + static_cast<uint32_t>(first);
    VecBits a = low, c = {}, d = {};
    // The carry of the addition above, where the low word wrapped.
    VecBits b = reinterpret_cast<VecBits>(low < lane) & 1;
    b += static_cast<uint32_t>(first >> 32);
    uint32_t key_0 = static_cast<uint32_t>(seed), key_1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      VecBits first_high, first_low, second_high, second_low;
      multiply_wide(a, 0xD2511F53u, first_high, first_low);
      multiply_wide(c, 0xCD9E8D57u, second_high, second_low);
      a = second_high ^ b ^ key_0;
      c = first_high ^ d ^ key_1;
      b = second_low;
      d = first_low;
      key_0 += 0x9E3779B9u;
      key_1 += 0xBB67AE85u;
    }
    // Lane by lane a, b, c, d.
    Vec ac[2], bd[2], out[4];
    interleave(reinterpret_cast<Vec>(a), reinterpret_cast<Vec>(c), ac[0], ac[1]);
    interleave(reinterpret_cast<Vec>(b), reinterpret_cast<Vec>(d), bd[0], bd[1]);
    interleave(ac[0], bd[0], out[0], out[1]);
    interleave(ac[1], bd[1], out[2], out[3]);
    std::memcpy(words + 4 * g, out, sizeof(out));
  }
}
