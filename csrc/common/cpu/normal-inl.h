// The normal deviates of common/normal.h, 4 kLanes at a time. Included after philox-inl.h: no include guard.

FASTDL_INLINE Vec square_root(Vec x) {
#if FASTDL_ISA >= FASTDL_ISA_AVX512
  return _mm512_maskz_sqrt_ps(0xffff, x);  // the plain one warns in GCC 12
#elif FASTDL_ISA == FASTDL_ISA_AVX2
  return _mm256_sqrt_ps(x);
#elif FASTDL_NEON
  return vsqrtq_f32(x);
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// An unsigned word rounded to float once: the upper half is exact, and the addition rounds.
FASTDL_INLINE Vec to_float(VecBits word) {
  const Vec high = __builtin_convertvector(reinterpret_cast<VecInt>(word >> 16), Vec);
  const Vec low = __builtin_convertvector(reinterpret_cast<VecInt>(word & 0xffff), Vec);
  return fma(high, set1(65536.0f), low);
}

FASTDL_INLINE Vec log_of_uniform(Vec u) {
  const VecInt shifted = reinterpret_cast<VecInt>(u) - 0x3f3504f3;
  const Vec f = reinterpret_cast<Vec>((shifted & 0x7fffff) + 0x3f3504f3) - set1(1.0f);
  Vec p = fma(f, set1(7.0376836292e-2f), set1(-1.1514610310e-1f));
  p = fma(f, p, set1(1.1676998740e-1f));
  p = fma(f, p, set1(-1.2420140846e-1f));
  p = fma(f, p, set1(1.4249322787e-1f));
  p = fma(f, p, set1(-1.6668057665e-1f));
  p = fma(f, p, set1(2.0000714765e-1f));
  p = fma(f, p, set1(-2.4999993993e-1f));
  p = fma(f, p, set1(3.3333331174e-1f));
  const Vec square = f * f, exponent = __builtin_convertvector(shifted >> 23, Vec);
  const Vec tail = fma(set1(-0.5f), square, fma(exponent, set1(-2.12194440e-4f), f * square * p));
  return fma(exponent, set1(0.693359375f), f + tail);
}

FASTDL_INLINE void box_muller(VecBits first, VecBits second, Vec& cosine, Vec& sine) {
  const Vec u = fma(to_float(first), set1(2.3283064365386963e-10f), set1(1.1641532182693481e-10f));
  const Vec radius = square_root(set1(-2.0f) * log_of_uniform(u));
  const VecBits quarter = (second + 0x20000000u) >> 30;
  const Vec x = __builtin_convertvector(reinterpret_cast<VecInt>(second - (quarter << 30)), Vec) *
                set1(1.4629180792671596e-9f);
  const Vec z = x * x;
  Vec s = fma(z, set1(-1.9515295891e-4f), set1(8.3321608736e-3f));
  s = fma(z, s, set1(-1.6666654611e-1f));
  s = fma(x * z, s, x);
  Vec c = fma(z, set1(2.443315711809948e-5f), set1(-1.388731625493765e-3f));
  c = fma(z, c, set1(4.166664568298827e-2f));
  c = fma(z * z, c, fma(set1(-0.5f), z, set1(1.0f)));
  const VecInt odd = -reinterpret_cast<VecInt>(quarter & 1);
  // bit 1 of the quarter becomes the sign
  const VecBits along = reinterpret_cast<VecBits>(select(odd, c, s)) ^ (quarter >> 1) << 31;
  const VecBits across = reinterpret_cast<VecBits>(select(odd, s, c)) ^ ((quarter + 1) >> 1) << 31;
  cosine = radius * reinterpret_cast<Vec>(across);
  sine = radius * reinterpret_cast<Vec>(along);
}

// Deviates of elements 4 block .. 4 block + 8 kLanes - 1 in memory order.
FASTDL_INLINE void normals(uint64_t block, uint64_t seed, uint64_t offset, float* out) {
  VecBits a[2], b[2], c[2], d[2];
  for (int k = 0; k < 2; ++k) {
    consecutive(block + static_cast<uint64_t>(k * kLanes), a[k], b[k]);
    c[k] = VecBits{} + static_cast<uint32_t>(offset);
    d[k] = VecBits{} + static_cast<uint32_t>(offset >> 32);
  }
  philox(a, b, c, d, seed);
  for (int k = 0; k < 2; ++k) {
    Vec n[4], ordered[4];
    box_muller(a[k], b[k], n[0], n[1]);
    box_muller(c[k], d[k], n[2], n[3]);
    interleave_4(n[0], n[1], n[2], n[3], ordered);
    for (int i = 0; i < 4; ++i) store(out + (4 * k + i) * kLanes, ordered[i]);
  }
}
