// exp, tanh, sigmoid and the tail of the normal distribution, of a Vec, by polynomials fitted to the relative
// error (Lawson's iteration). One text for every instruction set but for exp2_or_zero. NaN stays NaN,
// infinities and denormals are exact cases; largest errors measured against double are in
// tests/cpp/math_test.cpp. Included after vec-inl.h: no include guard.

FASTDL_INLINE VecBits bits_of(Vec x) { return reinterpret_cast<VecBits>(x); }
FASTDL_INLINE Vec from_bits(VecBits bits) { return reinterpret_cast<Vec>(bits); }
FASTDL_INLINE VecBits set1_bits(uint32_t bits) { return bits + VecBits{}; }

FASTDL_INLINE Vec magnitude(Vec x) { return from_bits(bits_of(x) & 0x7fffffff); }
// The magnitude of x with the sign of `sign`; x must not be negative.
FASTDL_INLINE Vec with_sign(Vec x, Vec sign) { return from_bits(bits_of(x) | (bits_of(sign) & 0x80000000)); }

// a + z b, the end of a Horner chain written from its top: horner(z, a, b, c) is a + z (b + z c).
FASTDL_INLINE Vec horner(Vec, float a) { return set1(a); }
template <class... More>
FASTDL_INLINE Vec horner(Vec z, float a, More... more) {
  return fma(z, horner(z, more...), set1(a));
}

// exp(x) = (1 + rest) 2^(bits_of(shifted) - bits_of(kExpRound)): adding 1.5 * 2^23 rounds x / ln 2 to the
// nearest integer and leaves it in the lowest bits.
constexpr float kExpRound = 12582912.0f;
struct ExpParts {
  Vec rest, shifted;
};
FASTDL_INLINE ExpParts exp_parts(Vec x) {
  const Vec shifted = fma(x, set1(1.44269504f), set1(kExpRound));
  const Vec n = shifted - set1(kExpRound);
  // ln 2 in two parts, n times the first being exact.
  const Vec r = fma(n, set1(2.12194440e-4f), fma(n, set1(-0.693359375f), x)), z = r * r;
  // In two halves: one after another, the products of a chain would be waited for.
  const Vec low = horner(r, 0.49999994f, 0.166665211f);
  const Vec high = fma(z, set1(0.00138146011f), horner(r, 0.041668389f, 0.00836871564f));
  return {fma(z, fma(z, high, low), r), shifted};
}

// The product, for exponents of normal numbers.
FASTDL_INLINE Vec scaled(const ExpParts& parts) {
  const Vec power = from_bits((bits_of(parts.shifted) - bits_of(set1(kExpRound)) + 127) << 23);
  return fma(parts.rest, power, power);
}

// exp of x up to 88; what would be below 1.6e-38 is 0: for sums of which one term is 1.
FASTDL_INLINE Vec exp_or_zero(Vec x) { return select(x < set1(-87.0f), zero(), scaled(exp_parts(x))); }

// 2^x for x below 128; from 2^-126.5 down it is 0. For sums of powers whose exponents are products anyway,
// with log2 e in their factor: the rounding to an integer and two products less than exp_or_zero.
constexpr float kLog2E = 1.44269504f;
constexpr double kLn2 = 0.693147180559945309;
#if FASTDL_ISA >= FASTDL_ISA_AVX512
// To sixteenths instead, whose powers are a table of one register: two thirds of the work.
FASTDL_INLINE Vec exp2_or_zero(Vec x) {
  constexpr float kRound = 786432.0f;  // 1.5 * 2^19
  const Vec powers = {1.0f,        1.04427378f, 1.09050773f, 1.13878863f, 1.18920712f, 1.24185781f,
                      1.29683955f, 1.35425555f, 1.41421356f, 1.47682615f, 1.54221083f, 1.61049033f,
                      1.68179283f, 1.75625216f, 1.83400809f, 1.91520656f};
  const Vec shifted = x + set1(kRound), n = shifted - set1(kRound), r = x - n;
  const Vec power = table_of_16(powers, shifted), rest = horner(r, 0.693147181f, 0.240226507f, 0.0555041087f);
  return times_power_of_2_or_0(fma(power * r, rest, power), n, x, -126.5f);
}
#else
FASTDL_INLINE Vec exp2_or_zero(Vec x) {
  const Vec least = max(set1(-127.0f), x);  // its power has the bits of 0; NaN passes
  const Vec shifted = least + set1(kExpRound);
  const Vec power = from_bits((bits_of(shifted) - bits_of(set1(kExpRound)) + 127) << 23);
  const Vec r = least - (shifted - set1(kExpRound)), z = r * r;
  const Vec low = horner(r, 0.240226477f, 0.0555033237f);
  const Vec high = fma(z, set1(0.000153533620f), horner(r, 0.00961843692f, 0.00133988750f));
  return fma(fma(z, fma(z, high, low), r * set1(0.693147182f)), power, power);
}
#endif

// What would be below 1.6e-38 is 0.
FASTDL_INLINE Vec sigmoid(Vec x) {
  // exp of a negative argument alone: nothing overflows, and small results keep their relative accuracy.
  const Vec e = exp_or_zero(from_bits(bits_of(x) | 0x80000000));
  return select(x < zero(), e, set1(1.0f)) / (e + set1(1.0f));
}

FASTDL_INLINE Vec tanh(Vec x) {
  const Vec a = magnitude(x), z = x * x;
  const Vec tail = horner(z, -0.333332807f, 0.133314416f, -0.0537397116f, 0.0206390787f, -0.00570497848f);
  const Vec small = fma(z * tail, a, a);
  // from 10 on tanh is 1 in float
  const Vec b = min(set1(10.0f), a);
  const Vec large = set1(1.0f) - set1(2.0f) / (scaled(exp_parts(b + b)) + set1(1.0f));
  return with_sign(select(a < set1(0.625f), small, large), x);
}

// The chance that a normal number exceeds a, for a >= 0: erfc(a / sqrt 2) / 2, by its log2, which is -1 in 0.
// Relative errors are 2.6e-7 up to 1, 8e-7 up to 2 and 6e-5 up to 7, where it is 1e-12; from 14 on it is 0.
FASTDL_INLINE Vec normal_tail(Vec a) {
  return exp2_or_zero(horner(a, -1.0f, -1.15110588f, -0.459204137f, -0.0524991527f, 0.00704277493f,
                             -8.69345095e-05f, -0.000233697254f, 6.19780694e-05f, -8.30269255e-06f,
                             5.95295944e-07f, -1.80414048e-08f));
}
