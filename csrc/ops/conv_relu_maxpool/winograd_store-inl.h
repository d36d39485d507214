// Stores the emitted outputs of a group, one vector of channels at a time, in the caller's memory format and
// type. One vector of a group per call, on the calling thread. Saves nothing.

// What is added to the outputs as they are stored, at their place in a tensor of their strides.
template <class T>
struct Residual {
  const T* data;  // or null: nothing is added
  Vec least;      // zeros: a ReLU follows; -inf: none
};

template <class T>
FASTDL_INLINE Vec with_residual(Vec v, const T* residual, Vec least) {
  return max(least, v + load(residual));  // keeps NaN
}

// from [count][kLanes] -> to[channel * plane + i], for the first `channels` lanes
template <bool kResidual, class T>
FASTDL_INLINE void store_channels_first(const float* from, int64_t count, T* to, const Residual<T>& residual,
                                        int64_t plane, int64_t channels) {
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
      for (int j = 0; j < kLanes; ++j) {
        const int64_t at = j * plane + begin;
        if constexpr (kResidual) rows[j] = with_residual(rows[j], residual.data + at, residual.least);
        store(to + at, rows[j]);
      }
    } else {
      for (int j = 0; j < kLanes; ++j) rows[j] = j < pixels ? load(from + (begin + j) * kLanes) : zero();
      transpose(rows);
      for (int j = 0; j < channels; ++j) {
        const int64_t at = j * plane + begin;
        const int count = static_cast<int>(pixels);
        if constexpr (kResidual)
          rows[j] = max(residual.least, rows[j] + load_first(residual.data + at, count));
        store_first(to + at, rows[j], count);
      }
    }
  }
}

// from [count][kLanes] -> to[i * pixel + channel], for the first `channels` lanes
template <bool kResidual, class T>
FASTDL_INLINE void store_channels_last(const float* from, int64_t count, T* to, const Residual<T>& residual,
                                       int64_t pixel, int64_t channels) {
  const int lanes = static_cast<int>(channels);
  for (int64_t i = 0; i < count; ++i) {
    Vec v = load(from + i * kLanes);
    const int64_t at = i * pixel;
    if (lanes == kLanes) {
      if constexpr (kResidual) v = with_residual(v, residual.data + at, residual.least);
      store(to + at, v);
    } else {
      if constexpr (kResidual) v = max(residual.least, v + load_first(residual.data + at, lanes));
      store_first(to + at, v, lanes);
    }
  }
}

// from [images][side rows][side cols][kLanes], side outputs of a tile each way -> channels k .. k + channels
// - 1 of `to`; kResidual: with target.residual
template <bool kResidual, class T>
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
      const int64_t at = (group.n + i) * strides[0] + k * strides[1] + (y + r) * strides[2] + x * strides[3];
      T* out = static_cast<T*>(to) + at;
      Residual<T> residual = {};
      if constexpr (kResidual)
        residual = {static_cast<const T*>(target.residual) + at,
                    set1(target.activation == Activation::kRelu ? 0 : -__builtin_inff())};
      const int64_t count = joined ? rows * cols : cols;
      if (channels_last)
        store_channels_last<kResidual>(line, count, out, residual, strides[3], channels);
      else
        store_channels_first<kResidual>(line, count, out, residual, strides[1], channels);
      if (target.activation <= Activation::kRelu) continue;
      // pixels of some channels, or channels of some pixels
      const int64_t runs = channels_last ? count : channels, step = strides[channels_last ? 3 : 1];
      for (int64_t j = 0; j < runs; ++j)
        activate_values(out + j * step, channels_last ? channels : count, target.activation);
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
