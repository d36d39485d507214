// Moments of a row for layer norm. The row: `parts` parts of `units` units; vector b of part g starts at
// row + g * part + b * vector. One thread. Saves nothing.

struct Moments {
  float mean, rstd;
};

// f(vector, lanes, offset) over a row.
template <class F>
FASTDL_INLINE void for_vectors(const float* row, int64_t units, int64_t parts, int64_t part, int64_t vector,
                               const F& f) {
  for (int64_t b = 0; b < vectors_of(units); ++b)
    for (int64_t g = 0; g < parts; ++g) f(load(row + g * part + b * vector), units_at(b * kLanes, units));
}

// Lanes past the units must be 0.
FASTDL_INLINE Moments moments_of(const float* row, int64_t units, int64_t parts, int64_t part,
                                 int64_t vector) {
  const double count = static_cast<double>(units * parts);
  Vec sum = zero(), square = zero();
  for_vectors(row, units, parts, part, vector, [&](Vec v, int) { sum = sum + v; });
  const float mean = static_cast<float>(sum_lanes(sum) / count);
  for_vectors(row, units, parts, part, vector, [&](Vec v, int n) {
    const Vec centred = select(units_mask(n), v - set1(mean), zero());
    square = fma(centred, centred, square);
  });
  constexpr double kEpsilon = 1e-5;
  return {mean, static_cast<float>(1 / __builtin_sqrt(sum_lanes(square) / count + kEpsilon))};
}

FASTDL_INLINE Vec mean_of(Vec sums, int64_t units) {
  return set1(static_cast<float>(sum_lanes(sums) / static_cast<double>(units)));
}
