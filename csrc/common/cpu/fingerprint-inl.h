// The fingerprint of a part of the memory: a polynomial of its words in each of four vectors' lanes, twice,
// with two multipliers. One part per call, on the calling thread.

// Odd, of random bits: Knuth's and another.
constexpr uint32_t kMultiplier = 2654435761u, kSecondMultiplier = 2246822519u;
constexpr int64_t kStep = 4 * sizeof(Vec);

// A product alone carries differences upwards only: two flips of a sign would cancel.
FASTDL_INLINE VecBits stirred(VecBits state) { return state ^ state >> 15; }

FASTDL_INLINE uint64_t mixed(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
  return hash ^ hash >> 29;
}

inline uint64_t fingerprint_part(const uint8_t* data, int64_t bytes) {
  VecBits first[4] = {}, second[4] = {};
  const auto take = [&](const uint8_t* from) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      VecBits words;
      std::memcpy(&words, from + i * sizeof(Vec), sizeof(Vec));
      first[i] = stirred((first[i] ^ words) * kMultiplier);
      second[i] = stirred((second[i] ^ words) * kSecondMultiplier);
    }
  };
  const int64_t whole = bytes / kStep * kStep;
  for (int64_t i = 0; i < whole; i += kStep) take(data + i);
  if (whole < bytes) {
    uint8_t rest[kStep] = {};
    std::memcpy(rest, data + whole, static_cast<size_t>(bytes - whole));
    take(rest);
  }
  uint64_t hash = static_cast<uint64_t>(bytes);
  for (int i = 0; i < 4; ++i)
    for (int lane = 0; lane < kLanes; ++lane)
      hash = mixed(hash, static_cast<uint64_t>(first[i][lane]) << 32 | second[i][lane]);
  return hash;
}

inline constexpr uint64_t (*kFingerprint[])(const uint8_t*, int64_t) = {fingerprint_part};
