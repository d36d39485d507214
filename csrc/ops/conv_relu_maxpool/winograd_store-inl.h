// Stores the emitted outputs of a group, one vector of channels at a time, in the caller's memory format and
// type. One vector of a group per call, on the calling thread. Saves nothing.

// from [count][kLanes] -> to[channel * plane + i], for the first `channels` lanes
template <class T>
FASTDL_INLINE void store_channels_first(const float* from, int64_t count, T* to, int64_t plane,
                                        int64_t channels) {
  for (int64_t i = 0; i < count; i += kLanes) {
    // The last block moves back over the one before, as in stage_channels_first.
    const int64_t begin = i + kLanes > count && count >= kLanes ? count - kLanes : i;
    const int64_t pixels = count - begin < kLanes ? count - begin : kLanes;
    Vec rows[kLanes];
    if (pixels == kLanes && channels == kLanes) {
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) rows[j] = load(from + (begin + j) * kLanes);
      transpose(rows);
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) store(to + j * plane + begin, rows[j]);
    } else {
      for (int j = 0; j < kLanes; ++j) rows[j] = j < pixels ? load(from + (begin + j) * kLanes) : zero();
      transpose(rows);
      for (int j = 0; j < channels; ++j)
        store_first(to + j * plane + begin, rows[j], static_cast<int>(pixels));
    }
  }
}

// from [count][kLanes] -> to[i * pixel + channel], for the first `channels` lanes
template <class T>
FASTDL_INLINE void store_channels_last(const float* from, int64_t count, T* to, int64_t pixel,
                                       int64_t channels) {
  if (channels == kLanes)
    for (int64_t i = 0; i < count; ++i) store(to + i * pixel, load(from + i * kLanes));
  else
    for (int64_t i = 0; i < count; ++i)
      store_first(to + i * pixel, load(from + i * kLanes), static_cast<int>(channels));
}

// from [images][side rows][side cols][kLanes], side outputs of a tile each way -> channels k .. k + channels
// - 1 of `to`
template <class T>
void store_group(const float* from, const WinogradGroup& group, int64_t side, int64_t k, int64_t channels,
                 void* to, const OutputTarget& target) {
  const int64_t y = side * group.y, x = side * group.x;
  const int64_t group_rows = side * group.rows, group_cols = side * group.cols;
  const int64_t rows = target.OH - y < group_rows ? target.OH - y : group_rows;
  const int64_t cols = target.OW - x < group_cols ? target.OW - x : group_cols;
  const int64_t* strides = target.strides;
  const bool channels_last = is_channels_last(strides, target.K);
  // Whole rows that follow each other here and there are one long row.
  const bool joined = cols == group_cols && strides[2] == cols * strides[3];
  for (int64_t i = 0; i < group.images; ++i)
    for (int64_t r = 0; r < (joined ? 1 : rows); ++r) {
      const float* line = from + (i * group_rows + r) * group_cols * kLanes;
      T* out = static_cast<T*>(to) + (group.n + i) * strides[0] + k * strides[1] + (y + r) * strides[2] +
               x * strides[3];
      const int64_t count = joined ? rows * cols : cols;
      if (channels_last)
        store_channels_last(line, count, out, strides[3], channels);
      else
        store_channels_first(line, count, out, strides[1], channels);
    }
}

// What store_group writes for some vectors of channels.
template <class T>
FASTDL_INLINE Footprint stored_footprint(const OutputTarget& target, const WinogradGroup& group, int64_t side,
                                         int64_t first_vec, int64_t vecs) {
  const int64_t k = first_vec * kLanes, y = side * group.y, x = side * group.x;
  const int64_t channels = target.K - k < vecs * kLanes ? target.K - k : vecs * kLanes;
  const int64_t rows = target.OH - y < side * group.rows ? target.OH - y : side * group.rows;
  const int64_t cols = target.OW - x < side * group.cols ? target.OW - x : side * group.cols;
  if (rows <= 0 || cols <= 0) return {};
  const int64_t* strides = target.strides;
  T* data =
      static_cast<T*>(target.data) + group.n * strides[0] + k * strides[1] + y * strides[2] + x * strides[3];
  return footprint(data, sizeof(T), strides, group.images, channels, rows, cols);
}
