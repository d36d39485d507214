// [position][channel] -> [channel][position] for elements smaller than a lane: bf16 with two positions in a
// lane, record bytes with four. One thread, transposed in registers so that whole cache lines are written.
// Saves nothing. Included by foreach_isa.h sources only: no include guard.

// The first `left` bytes of v.
FASTDL_INLINE void put_bytes(uint8_t* to, Vec v, int64_t left) {
  if (left >= 4 * kLanes) return std::memcpy(to, &v, sizeof(v)), void();
  const int words = static_cast<int>(left / 4);
  store_first(reinterpret_cast<float*>(to), v, words);
  std::memcpy(to + 4 * words, reinterpret_cast<const uint8_t*>(&v) + 4 * words,
              static_cast<size_t>(left % 4));
}

// kLanes channels of as many positions as a lane holds.
FASTDL_INLINE Vec positions_in_lanes(const BFloat16* from, int64_t pitch) {
  return reinterpret_cast<Vec>(load_bits(from, kLanes) | load_bits(from + pitch, kLanes) << 16);
}
FASTDL_INLINE Vec positions_in_lanes(const uint8_t* from, int64_t pitch) {
  return reinterpret_cast<Vec>(load_bytes(from, VecInt{}) | load_bytes(from + pitch, VecInt{}) << 8 |
                               load_bytes(from + 2 * pitch, VecInt{}) << 16 |
                               load_bytes(from + 3 * pitch, VecInt{}) << 24);
}

// Positions are `pitch` elements apart; reads those of whole vectors.
template <class T>
inline void put_narrow_planes(const T* from, int64_t pitch, int64_t positions, int64_t channels,
                              int64_t plane, T* to) {
  constexpr int64_t kSize = sizeof(T), kShared = 4 / kSize;
  for (int64_t c = 0; c < channels; c += kLanes)
    for (int64_t i = 0; i < positions; i += kShared * kLanes) {
      Vec rows[kLanes];
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j)
        rows[j] = positions_in_lanes(from + (i + kShared * j) * pitch + c, pitch);
      transpose(rows);
      for (int64_t j = 0; j < smaller(channels - c, kLanes); ++j)
        put_bytes(reinterpret_cast<uint8_t*>(to + (c + j) * plane + i), rows[j], (positions - i) * kSize);
    }
}
