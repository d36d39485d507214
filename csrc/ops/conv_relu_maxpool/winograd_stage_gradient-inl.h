// Stages the gradient of the convolution's output for a group of tiles, as winograd_stage-inl.h does: each
// pooled gradient at the position its record names, zeros elsewhere; without a pool, the gradient where the
// ReLU is open; without a ReLU, all of it. One group per call, on the calling thread. Saves nothing; the
// mostly-zero gradient exists in cache only.

struct GradientSource {
  const void* grad_output;  // [N, K, OH, OW]
  const uint8_t* record;    // strides of grad_output, or null: not pooled
  const void* output;       // strides of grad_output, or null: pooled, or no ReLU
  const int64_t* strides;   // N, K, OH, OW; K or OW has stride 1
  int64_t OH, OW;
  int64_t first_channel;
};

// The rows of a window that are staged.
enum WindowRows { kUpperRow = 1, kLowerRow = 2, kBothRows = 3 };

// One pooled pixel to its window, whose left column is staged column `col`; out: its first pixel.
template <int kRows>
FASTDL_INLINE void expand_pixel(Vec grad, Vec record, int64_t col, const StagedSize& size, float* out) {
  const VecInt position = reinterpret_cast<VecInt>(record);
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    if (col + j < 0 || col + j >= size.cols) continue;
    float* o = out + j * size.channels;
    if (kRows & kUpperRow) store(o, select(position == j, grad, zero()));
    if (kRows & kLowerRow) store(o + size.row(), select(position == 2 + j, grad, zero()));
  }
}

// `count` pooled pixels of kLanes channels, of which `channels` exist; out: the first pixel of the first
// window.
template <int kRows, class T>
FASTDL_INLINE void expand_channels_first(const T* grad, const ByteBits* record, int64_t channel_stride,
                                         int64_t channels, int64_t count, int64_t col, const StagedSize& size,
                                         float* out) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t begin = i + kLanes > count && count >= kLanes ? count - kLanes : i;
    const int64_t pixels = count - begin < kLanes ? count - begin : kLanes;
    Vec grads[kLanes], records[kLanes];
    load_columns(grad + begin, channel_stride, channels, pixels, grads);
    load_columns(record + begin, channel_stride, channels, pixels, records);
    for (int64_t j = 0; j < pixels; ++j)
      expand_pixel<kRows>(grads[j], records[j], col + 2 * (begin + j), size,
                          out + 2 * (begin + j) * size.channels);
  }
}

template <int kRows, class T>
FASTDL_INLINE void expand_channels_last(const T* grad, const ByteBits* record, int64_t pixel_stride,
                                        int64_t channels, int64_t count, int64_t col, const StagedSize& size,
                                        float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = i * pixel_stride;
    const Vec g = channels >= kLanes ? load(grad + at) : load_first(grad + at, static_cast<int>(channels));
    const Vec r =
        channels >= kLanes ? load(record + at) : load_first(record + at, static_cast<int>(channels));
    expand_pixel<kRows>(g, r, col + 2 * i, size, out + 2 * i * size.channels);
  }
}

// A row of pooled pixels [x, x + count), its windows' first row and column at (row, col) of the staged image.
template <int kRows, class T>
FASTDL_INLINE void expand_row(const GradientSource& source, int64_t at, int64_t C, int64_t count, int64_t row,
                              int64_t col, const StagedSize& size, float* image) {
  const T* grad = static_cast<const T*>(source.grad_output) + at;
  const ByteBits* record = reinterpret_cast<const ByteBits*>(source.record) + at;
  const int64_t stride = source.strides[1];
  float* out = image + row * size.row() + col * size.channels;
  for (int64_t c = 0; c < C; c += kLanes) {
    const T* g = grad + c * stride;
    const ByteBits* r = record + c * stride;
    if (is_channels_last(source.strides, C))
      expand_channels_last<kRows>(g, r, source.strides[3], C - c, count, col, size, out + c);
    else
      expand_channels_first<kRows>(g, r, stride, C - c, count, col, size, out + c);
  }
}

template <class T>
void stage_pooled_gradient(const void* from, const WinogradShape& shape, const WinogradGroup& group,
                           const StagedSize& size, float* staged) {
  const GradientSource& source = *static_cast<const GradientSource*>(from);
  const int64_t top = group.tile * group.y - shape.padding[0], left = group.tile * group.x - shape.padding[1];
  // The rows and columns that windows cover, and the windows that touch them.
  const StagedRange rows = staged_range(top, size.rows, 2 * source.OH),
                    cols = staged_range(left, size.cols, 2 * source.OW);
  const bool touched = rows.begin < rows.end && cols.begin < cols.end;
  const int64_t y_begin = (top + rows.begin) / 2, y_end = touched ? (top + rows.end + 1) / 2 : y_begin;
  const int64_t x = (left + cols.begin) / 2, count = (left + cols.end + 1) / 2 - x;
  for (int64_t i = 0; i < group.images; ++i) {
    float* image = staged + i * size.image();
    zero_outside(rows, cols, size, image);
    for (int64_t y = y_begin; y < y_end; ++y) {
      const int64_t at = (group.n + i) * source.strides[0] + source.first_channel * source.strides[1] +
                         y * source.strides[2] + x * source.strides[3];
      const int64_t row = 2 * y - top, col = 2 * x - left;
      if (row < 0)
        expand_row<kLowerRow, T>(source, at, shape.C, count, row, col, size, image);
      else if (row + 1 >= size.rows)
        expand_row<kUpperRow, T>(source, at, shape.C, count, row, col, size, image);
      else
        expand_row<kBothRows, T>(source, at, shape.C, count, row, col, size, image);
    }
  }
}

// Closes a staged image of gradients where the staged outputs are not positive.
FASTDL_INLINE void close_relu(const float* output, int64_t count, float* grad) {
  for (int64_t i = 0; i < count; i += kLanes)
    store(grad + i, select(load(output + i) <= zero(), zero(), load(grad + i)));
}

template <class T>
void stage_plain_gradient(const void* from, const WinogradShape& shape, const WinogradGroup& group,
                          const StagedSize& size, float* staged) {
  const GradientSource& source = *static_cast<const GradientSource*>(from);
  const ImageSource grad = {source.grad_output, source.strides, source.first_channel};
  stage_image<T>(&grad, shape, group, size, staged);
}

template <class T>
void stage_unpooled_gradient(const void* from, const WinogradShape& shape, const WinogradGroup& group,
                             const StagedSize& size, float* staged) {
  const GradientSource& source = *static_cast<const GradientSource*>(from);
  const ImageSource grad = {source.grad_output, source.strides, source.first_channel};
  const ImageSource output = {source.output, source.strides, source.first_channel};
  // The outputs lie behind the gradients: staging memory of a gradient without a pool is twice as large.
  float* outputs = staged + group.images * size.image();
  stage_image<T>(&grad, shape, group, size, staged);
  stage_image<T>(&output, shape, group, size, outputs);
  close_relu(outputs, group.images * size.image(), staged);
}
