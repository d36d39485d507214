// What a task writes: `positions` neighbouring pooled elements of a block of channels, from
// values[position][kBlock] and bytes[position][kBlock] in L1 to the output and the record.

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
