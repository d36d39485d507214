// Stages the pixels a group of tiles reads as fp32 channels-last rows in cache: padding and absent channels as zeros.
// One group per call, on the calling thread. Saves nothing.

// staged [images][4 rows + 2][4 cols + 2][round_up(C, kLanes)]
struct StagedSize {
  int64_t rows, cols, channels;
  int64_t row() const { return cols * channels; }
  int64_t image() const { return rows * cols * channels; }
};
FASTDL_INLINE StagedSize staged_size(int64_t rows, int64_t cols, int64_t C) {
  return {kTile * rows + 2, kTile * cols + 2, (C + kLanes - 1) / kLanes * kLanes};
}

struct ImageSource {
  const void* data;    // [N, C, H, W]
  int64_t strides[4];  // C or W has stride 1
};

FASTDL_INLINE void zero_floats(float* p, int64_t count) { std::memset(p, 0, static_cast<size_t>(count) * 4); }

FASTDL_INLINE bool is_channels_last(const int64_t (&strides)[4], int64_t C) {
  return strides[1] == 1 && !(strides[3] == 1 && C == 1);
}

// rows[i] = the first `channels` of kLanes rows `stride` apart, `count` elements each; the rest zeros.
template <class T>
FASTDL_INLINE void load_rows(const T* p, int64_t stride, int64_t channels, int64_t count, Vec (&rows)[kLanes]) {
  if (channels >= kLanes && count >= kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = load(p + i * stride);
  } else if (count >= kLanes) {
    for (int i = 0; i < kLanes; ++i) rows[i] = i < channels ? load(p + i * stride) : zero();
  } else {
    for (int i = 0; i < kLanes; ++i)
      rows[i] = i < channels ? load_first(p + i * stride, static_cast<int>(count)) : zero();
  }
}

// out[i][c] = x[c * channel_stride + i] for `count` pixels.
template <class T>
FASTDL_INLINE void stage_channels_first(const T* x, int64_t channel_stride, int64_t C, int64_t count, float* out,
                                        int64_t out_channels) {
  for (int64_t c = 0; c < C; c += kLanes) {
    const T* plane = x + c * channel_stride;
    for (int64_t i = 0; i < count; i += kLanes) {
      // The last block moves back over the one before: no masks where a row has kLanes pixels.
      const int64_t begin = i + kLanes > count && count >= kLanes ? count - kLanes : i;
      Vec rows[kLanes];
      load_rows(plane + begin, channel_stride, C - c, count - begin, rows);
      transpose(rows);
      float* o = out + begin * out_channels + c;
      if (count - begin >= kLanes) {
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) store(o + j * out_channels, rows[j]);
      } else {
        for (int64_t j = 0; j < count - begin; ++j) store(o + j * out_channels, rows[j]);
      }
    }
  }
}

// out[i][c] = x[i * pixel_stride + c] for `count` pixels.
template <class T>
FASTDL_INLINE void stage_channels_last(const T* x, int64_t pixel_stride, int64_t C, int64_t count, float* out,
                                       int64_t out_channels) {
  const int64_t whole = C / kLanes * kLanes;
  for (int64_t i = 0; i < count; ++i) {
    const T* pixel = x + i * pixel_stride;
    float* o = out + i * out_channels;
    for (int64_t c = 0; c < whole; c += kLanes) store(o + c, load(pixel + c));
    if (whole < C) store(o + whole, load_first(pixel + whole, static_cast<int>(C - whole)));
  }
}

template <class T>
void stage_image(const ImageSource& source, const WinogradShape& shape, const WinogradGroup& group, float* staged) {
  const StagedSize size = staged_size(group.rows, group.cols, shape.C);
  const bool channels_last = is_channels_last(source.strides, shape.C);
  const int64_t top = kTile * group.y - shape.padding[0], left = kTile * group.x - shape.padding[1];
  const int64_t before = left < 0 ? -left : 0;
  const int64_t begin = before < size.cols ? before : size.cols;
  const int64_t inside = shape.W - left < size.cols ? shape.W - left : size.cols;
  const int64_t end = inside > begin ? inside : begin;
  for (int64_t i = 0; i < group.images; ++i) {
    for (int64_t r = 0; r < size.rows; ++r) {
      float* row = staged + i * size.image() + r * size.row();
      const int64_t y = top + r;
      if (y < 0 || y >= shape.H || begin == end) {
        zero_floats(row, size.row());
        continue;
      }
      zero_floats(row, begin * size.channels);
      zero_floats(row + end * size.channels, (size.cols - end) * size.channels);
      const T* x = static_cast<const T*>(source.data) + (group.n + i) * source.strides[0] + y * source.strides[2] +
                   (left + begin) * source.strides[3];
      float* out = row + begin * size.channels;
      if (channels_last)
        stage_channels_last(x, source.strides[3], shape.C, end - begin, out, size.channels);
      else
        stage_channels_first(x, source.strides[1], shape.C, end - begin, out, size.channels);
    }
  }
}
