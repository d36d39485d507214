// Philox4x32-10 (common/philox.h), kLanes counters at a time. Included after vec-inl.h: no include guard.

// The two halves of the 64-bit products of each lane with `factor`.
FASTDL_INLINE void multiply_wide(VecBits x, uint32_t factor, VecBits& high, VecBits& low) {
  low = x * factor;
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  const __m512i a = reinterpret_cast<__m512i>(x), f = _mm512_set1_epi64(factor);
  // With a mask of all lanes: the plain ones warn in GCC 12.
  const __m512i upper = _mm512_maskz_srli_epi64(0xff, a, 32);
  const __m512i even = _mm512_maskz_mul_epu32(0xff, a, f), odd = _mm512_maskz_mul_epu32(0xff, upper, f);
  high =
      reinterpret_cast<VecBits>(_mm512_mask_mov_epi32(_mm512_maskz_srli_epi64(0xff, even, 32), 0xaaaa, odd));
#elif FASTDL_ISA == FASTDL_ISA_AVX2
  const __m256i a = reinterpret_cast<__m256i>(x), f = _mm256_set1_epi64x(factor);
  const __m256i even = _mm256_mul_epu32(a, f), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), f);
  high = reinterpret_cast<VecBits>(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa));
#else
  for (int i = 0; i < kLanes; ++i) high[i] = static_cast<uint32_t>((uint64_t{x[i]} * factor) >> 32);
#endif
}

// The ten rounds: the words of the counters (a, b, c, d), lane by lane, in their place; n vectors of counters
// side by side, since one alone waits for its own products.
template <int n>
FASTDL_INLINE void philox(VecBits (&a)[n], VecBits (&b)[n], VecBits (&c)[n], VecBits (&d)[n], uint64_t seed) {
  VecBits key_0 = VecBits{} + static_cast<uint32_t>(seed),
          key_1 = VecBits{} + static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 4
    for (int k = 0; k < n; ++k) {
      VecBits first_high, first_low, second_high, second_low;
      multiply_wide(a[k], 0xD2511F53u, first_high, first_low);
      multiply_wide(c[k], 0xCD9E8D57u, second_high, second_low);
      a[k] = second_high ^ b[k] ^ key_0;
      c[k] = first_high ^ d[k] ^ key_1;
      b[k] = second_low;
      d[k] = first_low;
    }
    key_0 += 0x9E3779B9u;
    key_1 += 0xBB67AE85u;
  }
}

// The low and high words of first, first + 1, ...
FASTDL_INLINE void consecutive(uint64_t first, VecBits& low, VecBits& high) {
  VecBits lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = static_cast<uint32_t>(i);
  low = lane + static_cast<uint32_t>(first);
  // The carry, where the low word wrapped.
  high = (reinterpret_cast<VecBits>(low < lane) & 1) + static_cast<uint32_t>(first >> 32);
}

// out[4 i + j] = lane i of word j
FASTDL_INLINE void interleave_4(Vec a, Vec b, Vec c, Vec d, Vec (&out)[4]) {
  Vec ac[2], bd[2];
  interleave(a, c, ac[0], ac[1]);
  interleave(b, d, bd[0], bd[1]);
  interleave(ac[0], bd[0], out[0], out[1]);
  interleave(ac[1], bd[1], out[2], out[3]);
}

// words[4 g + j] = word j of counter (first + g, third, 0), for `groups` counters; writes whole vectors, so
// `words` has room for groups rounded up to kLanes.
inline void philox_words(uint64_t first, int64_t groups, uint64_t seed, uint32_t* words, uint32_t third = 0) {
  for (int64_t g = 0; g < groups; g += kLanes, first += kLanes) {
    VecBits a[1], b[1], c[1] = {VecBits{} + third}, d[1] = {};
    consecutive(first, a[0], b[0]);
    philox(a, b, c, d, seed);
    Vec out[4];
    interleave_4(reinterpret_cast<Vec>(a[0]), reinterpret_cast<Vec>(b[0]), reinterpret_cast<Vec>(c[0]),
                 reinterpret_cast<Vec>(d[0]), out);
    std::memcpy(words + 4 * g, out, sizeof(out));
  }
}
