// What a task writes: `positions` neighbouring pooled elements of a block of channels, from
// values[position][kBlock] and bytes[position][kBlock] in L1 to the output and the record.

// Planes are written in short runs that no hardware prefetcher follows, and a line not owned costs more than
// the transpose: ask for `per_tile` of the lines to come between two tiles.
struct Ahead {
  char* line;         // the next line
  int64_t plane;      // bytes from one run to the next
  int64_t run, left;  // lines of a run, and left of this one
  int64_t runs;       // left
  int64_t per_tile;
};

FASTDL_INLINE Ahead look_ahead(void* output, int64_t plane, int64_t positions, int64_t channels, int64_t size,
                               int64_t tiles) {
  const int64_t run = positions * size / 64 + 1;
  return {static_cast<char*>(output), plane * size, run, run, channels, (run * channels + tiles - 1) / tiles};
}

FASTDL_INLINE void ask(Ahead* ahead) {
  for (int64_t i = ahead->runs > 0 ? ahead->per_tile : 0; i > 0 && ahead->runs > 0; --i) {
    __builtin_prefetch(ahead->line, 1);
    ahead->line += 64;
    if (--ahead->left == 0) {
      ahead->line += ahead->plane - 64 * ahead->run;
      ahead->left = ahead->run;
      --ahead->runs;
    }
  }
}

// channels_last: rows of channels.
template <class T>
void put_channels(const float* values, const uint8_t* bytes, int64_t positions, int64_t channels,
                  int64_t C_out, T* output, uint8_t* record) {
  for (int64_t i = 0; i < positions; ++i)
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int left = static_cast<int>(smaller(channels - c, kLanes));
      const Vec v = load(values + i * kBlock + c);
      left == kLanes ? store(output + i * C_out + c, v) : store_first(output + i * C_out + c, v, left);
      if (record != nullptr)
        std::memcpy(record + i * C_out + c, bytes + i * kBlock + c, static_cast<size_t>(left));
    }
}

// Contiguous: rows of positions, transposed in registers so that whole cache lines are written.
template <class T>
void put_planes(const float* values, int64_t positions, int64_t channels, int64_t plane, T* output) {
  for (int64_t c = 0; c < channels; c += kLanes)
    for (int64_t i = 0; i < positions; i += kLanes) {
      const int left = static_cast<int>(smaller(positions - i, kLanes));
      Vec rows[kLanes];
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) rows[j] = load(values + (i + j) * kBlock + c);
      transpose(rows);
      T* to = output + c * plane + i;
      const int64_t count = smaller(channels - c, kLanes);
      if (left == kLanes && count == kLanes) {
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) store(to + j * plane, rows[j]);
      } else {
        for (int64_t j = 0; j < count; ++j) store_first(to + j * plane, rows[j], left);
      }
    }
}

// The first `left` bytes of v.
FASTDL_INLINE void put_bytes(uint8_t* to, Vec v, int64_t left) {
  if (left == 4 * kLanes) return std::memcpy(to, &v, sizeof(v)), void();
  const int words = static_cast<int>(left / 4);
  store_first(reinterpret_cast<float*>(to), v, words);
  std::memcpy(to + 4 * words, reinterpret_cast<const uint8_t*>(&v) + 4 * words,
              static_cast<size_t>(left % 4));
}

// The same for bytes, four positions a lane.
inline void put_record_planes(const uint8_t* bytes, int64_t positions, int64_t channels, int64_t plane,
                              uint8_t* record) {
  for (int64_t c = 0; c < channels; c += kLanes)
    for (int64_t i = 0; i < positions; i += 4 * kLanes) {
      const int64_t left = smaller(positions - i, 4 * kLanes);
      Vec rows[kLanes];
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) {
        const uint8_t* from = bytes + (i + 4 * j) * kBlock + c;
        rows[j] = reinterpret_cast<Vec>(
            load_bytes(from, VecInt{}) | load_bytes(from + kBlock, VecInt{}) << 8 |
            load_bytes(from + 2 * kBlock, VecInt{}) << 16 | load_bytes(from + 3 * kBlock, VecInt{}) << 24);
      }
      transpose(rows);
      for (int64_t j = 0; j < smaller(channels - c, kLanes); ++j)
        put_bytes(record + (c + j) * plane + i, rows[j], left);
    }
}
