// Stages the gradient of the convolution's output for a group of tiles, as winograd_stage-inl.h does: each pooled gradient at
// the position its record names, zeros elsewhere; without a pool, the gradient where the ReLU is open.
// One group per call, on the calling thread. Saves nothing; the mostly-zero gradient exists in cache only.

struct GradientSource {
  const void* grad_output;  // [N, K, OH, OW]
  const uint8_t* record;    // strides of grad_output, or null: not pooled
  const void* output;       // strides of grad_output, read where not pooled
  const int64_t* strides;   // N, K, OH, OW; K or OW has stride 1
  int64_t OH, OW;
  int64_t first_channel;
};

// One pooled pixel to the pixels of its window that are staged; `out` is the window's first pixel, at (row, col).
FASTDL_INLINE void expand_pixel(Vec grad, Vec record, int64_t row, int64_t col, const StagedSize& size, float* out) {
  for (int q = 0; q < 4; ++q) {
    const int64_t i = q / 2, j = q % 2;
    if (row + i < 0 || row + i >= size.rows || col + j < 0 || col + j >= size.cols) continue;
    const VecInt here = reinterpret_cast<VecInt>(record) == q;
    store(out + i * size.row() + j * size.channels, select(here, grad, zero()));
  }
}

// Pooled pixels [0, count) of a row, the first one's window at (row, col) of the staged image.
template <class T>
FASTDL_INLINE void expand_channels_first(const T* grad, const ByteBits* record, int64_t channel_stride, int64_t C,
                                         int64_t count, int64_t row, int64_t col, const StagedSize& size, float* image) {
  for (int64_t c = 0; c < C; c += kLanes)
    for (int64_t i = 0; i < count; i += kLanes) {
      const int64_t begin = i + kLanes > count && count >= kLanes ? count - kLanes : i;
      const int64_t pixels = count - begin < kLanes ? count - begin : kLanes;
      const int64_t at = c * channel_stride + begin;
      Vec grads[kLanes], records[kLanes];
      load_rows(grad + at, channel_stride, C - c, pixels, grads);
      load_rows(record + at, channel_stride, C - c, pixels, records);
      transpose(grads);
      transpose(records);
      for (int64_t j = 0; j < pixels; ++j) {
        const int64_t x = col + 2 * (begin + j);
        expand_pixel(grads[j], records[j], row, x, size, image + row * size.row() + x * size.channels + c);
      }
    }
}

template <class T>
FASTDL_INLINE void expand_channels_last(const T* grad, const ByteBits* record, int64_t pixel_stride, int64_t C,
                                        int64_t count, int64_t row, int64_t col, const StagedSize& size, float* image) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t x = col + 2 * i;
    float* out = image + row * size.row() + x * size.channels;
    for (int64_t c = 0; c < C; c += kLanes) {
      const int64_t at = i * pixel_stride + c;
      if (C - c >= kLanes)
        expand_pixel(load(grad + at), load(record + at), row, x, size, out + c);
      else
        expand_pixel(load_first(grad + at, static_cast<int>(C - c)), load_first(record + at, static_cast<int>(C - c)),
                     row, x, size, out + c);
    }
  }
}

template <class T>
void stage_pooled_gradient(const void* from, const WinogradShape& shape, const WinogradGroup& group,
                           const StagedSize& size, float* staged) {
  const GradientSource& source = *static_cast<const GradientSource*>(from);
  const bool channels_last = is_channels_last(source.strides, shape.C);
  const int64_t top = kTile * group.y - shape.padding[0], left = kTile * group.x - shape.padding[1];
  // Windows that touch the staged rows and columns.
  const int64_t y_begin = top > 0 ? top / 2 : 0, x_begin = left > 0 ? left / 2 : 0;
  const int64_t y_touch = (top + size.rows + 1) / 2, x_touch = (left + size.cols + 1) / 2;
  const int64_t y_end = y_touch < source.OH ? y_touch : source.OH, x_end = x_touch < source.OW ? x_touch : source.OW;
  zero_floats(staged, group.images * size.image());
  for (int64_t i = 0; i < group.images; ++i)
    for (int64_t y = y_begin; y < y_end; ++y) {
      const int64_t at = (group.n + i) * source.strides[0] + source.first_channel * source.strides[1] +
                         y * source.strides[2] + x_begin * source.strides[3];
      const T* grad = static_cast<const T*>(source.grad_output) + at;
      const ByteBits* record = reinterpret_cast<const ByteBits*>(source.record) + at;
      const int64_t row = 2 * y - top, col = 2 * x_begin - left;
      float* image = staged + i * size.image();
      if (channels_last)
        expand_channels_last(grad, record, source.strides[3], shape.C, x_end - x_begin, row, col, size, image);
      else
        expand_channels_first(grad, record, source.strides[1], shape.C, x_end - x_begin, row, col, size, image);
    }
}

// Closes a staged image of gradients where the staged outputs are not positive.
FASTDL_INLINE void close_relu(const float* output, int64_t count, float* grad) {
  for (int64_t i = 0; i < count; i += kLanes) store(grad + i, select(load(output + i) <= zero(), zero(), load(grad + i)));
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
