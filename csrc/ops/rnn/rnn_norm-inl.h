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
  const float count = static_cast<float>(units * parts);
  Vec sum = zero(), square = zero();
  for_vectors(row, units, parts, part, vector, [&](Vec v, int) { sum = sum + v; });
  const float mean = sum_lanes(sum) / count;
  for_vectors(row, units, parts, part, vector, [&](Vec v, int n) {
    const Vec centred = select(units_mask(n), v - set1(mean), zero());
    square = fma(centred, centred, square);
  });
  constexpr float kEpsilon = 1e-5f;
  return {mean, 1 / __builtin_sqrtf(sum_lanes(square) / count + kEpsilon)};
}
