// Rows of a depthwise convolution's input in fp32 with their padding, as direct_input-inl.h describes them.
// One thread.

constexpr int64_t kStagedPart = 4096;  // floats: half of an L1 of 32 KiB

// One row of the input, `readable` elements before the end of all. The padding before it is zero already.
template <class T>
FASTDL_INLINE void stage_row(const T* row, int64_t readable, const ConvGeometry& g, const StagedInput& s,
                             float* to) {
  const int64_t padding = g.padding[1];
  if (g.stride[1] > 2 || readable < g.W + 2 * kLanes) return stage_channel(row, 1, s, g, to);
  // Whole vectors, then zeros over what lies past the row: masked loads take some 15 cycles on Zen.
  if (g.stride[1] == 1) {
    for (int64_t j = 0; j < g.W; j += kLanes) store(to + padding + j, load(row + j));
    return store(to + padding + g.W, zero());
  }
  // The first slot holds the even elements where the padding is even, else the odd ones.
  float* const second = s.slots == 2 ? to + s.length : nullptr;
  float* even = padding % 2 == 0 ? to : second;
  float* odd = padding % 2 == 0 ? second : to;
  if (even != nullptr) even += padding / 2;
  if (odd != nullptr) odd += (padding + 1) / 2;
  for (int64_t j = 0; j < (g.W + 1) / 2; j += kLanes) {
    Vec of_even, of_odd;
    load_pairs(row + 2 * j, kLanes, of_even, of_odd);
    if (even != nullptr) store(even + j, of_even);
    if (odd != nullptr) store(odd + j, of_odd);
  }
  if (even != nullptr) store(even + (g.W + 1) / 2, zero());
  if (odd != nullptr) store(odd + g.W / 2, zero());
}

// Rows [rows.begin, rows.end) of the padded input.
template <class T>
void stage_part(const T* plane, int64_t readable, const ConvGeometry& g, const StagedInput& s, Range rows,
                float* staged) {
  const int64_t ahead = (rows.end - rows.begin) * g.W;
  for (int64_t h = rows.begin; h < rows.end; ++h, staged += s.row) {
    // What the next part or plane reads is fetched while this one is multiplied.
    for (int64_t i = 0; i < g.W; i += 64 / static_cast<int64_t>(sizeof(T)))
      __builtin_prefetch(plane + h * g.W + ahead + i);
    if (h >= 0 && h < g.H)
      stage_row(plane + h * g.W, readable - h * g.W, g, s, staged);
    else
      std::memset(staged, 0, static_cast<size_t>(s.row) * sizeof(float));
  }
}
