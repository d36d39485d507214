// Stages the pixels a group of tiles reads as fp32 channels-last rows in cache: padding and absent channels
// as zeros. One group per call, on the calling thread. Saves nothing.

// staged [images][rows][cols][channels], channels rounded up to kLanes
struct StagedSize {
  int64_t rows, cols, channels;
  int64_t row() const { return cols * channels; }
  int64_t image() const { return rows * cols * channels; }
};
FASTDL_INLINE int64_t padded(int64_t channels) { return (channels + kLanes - 1) / kLanes * kLanes; }

// What the tiles of a WinogradGroup read, or those of a WinogradPlan's largest; tiles overlap by `overlap`
// pixels: 2 as inputs, 0 as gradients of outputs.
template <class Tiles>
FASTDL_INLINE StagedSize staged_size(const Tiles& tiles, int64_t C, int64_t overlap) {
  return {tiles.tile * tiles.rows + overlap, tiles.tile * tiles.cols + overlap, padded(C)};
}

// Fills `staged` with what the tiles of `group` read.
using StageFunction = void (*)(const void* source, const WinogradShape& shape, const WinogradGroup& group,
                               const StagedSize& size, float* staged);

struct ImageSource {
  const void* data;        // [N, C, H, W]
  const int64_t* strides;  // N, C, H, W; C or W has stride 1
  int64_t first_channel;   // of those that are staged
};

// The pixels of the source along one axis: staged [begin, end) are source [begin + origin, end + origin).
struct StagedRange {
  int64_t origin, begin, end;
};
FASTDL_INLINE StagedRange staged_range(int64_t origin, int64_t staged, int64_t source) {
  const int64_t before = origin < 0 ? -origin : 0, inside = source - origin;
  const int64_t begin = before < staged ? before : staged, end = inside < staged ? inside : staged;
  return {origin, begin, end > begin ? end : begin};
}

FASTDL_INLINE void zero_floats(float* p, int64_t count) { std::memset(p, 0, static_cast<size_t>(count) * 4); }

FASTDL_INLINE bool is_channels_last(const int64_t* strides, int64_t C) {
  return strides[1] == 1 && !(strides[3] == 1 && C == 1);
}

// rows[i] = the first `channels` of kLanes rows `stride` apart, `count` elements each; the rest zeros.
template <class T>
FASTDL_INLINE void load_rows(const T* p, int64_t stride, int64_t channels, int64_t count,
                             Vec (&rows)[kLanes]) {
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

// columns[i] = element i of each of the rows above.
template <class T>
__attribute__((noinline)) void load_columns(const T* p, int64_t stride, int64_t channels, int64_t count,
                                            Vec (&columns)[kLanes]) {
  load_rows(p, stride, channels, count, columns);
  transpose(columns);
}

// out[i][c] = x[c * channel_stride + i] for `count` pixels and kLanes channels, of which `channels` exist.
template <class T>
FASTDL_INLINE void stage_channels_first(const T* x, int64_t channel_stride, int64_t channels, int64_t count,
                                        float* out, int64_t out_channels) {
  for (int64_t i = 0; i < count; i += kLanes) {
    // The last block moves back over the one before: no masks where a row has kLanes pixels.
    const int64_t begin = i + kLanes > count && count >= kLanes ? count - kLanes : i;
    Vec rows[kLanes];
    load_rows(x + begin, channel_stride, channels, count - begin, rows);
    transpose(rows);
    float* o = out + begin * out_channels;
    if (count - begin >= kLanes) {
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) store(o + j * out_channels, rows[j]);
    } else {
      for (int64_t j = 0; j < count - begin; ++j) store(o + j * out_channels, rows[j]);
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

// Zeros outside rows x cols of a staged image.
FASTDL_INLINE void zero_outside(const StagedRange& rows, const StagedRange& cols, const StagedSize& size,
                                float* image) {
  zero_floats(image, rows.begin * size.row());
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    zero_floats(image + r * size.row(), cols.begin * size.channels);
    zero_floats(image + r * size.row() + cols.end * size.channels, (size.cols - cols.end) * size.channels);
  }
  zero_floats(image + rows.end * size.row(), (size.rows - rows.end) * size.row());
}

template <class T>
void stage_image(const void* from, const WinogradShape& shape, const WinogradGroup& group,
                 const StagedSize& size, float* staged) {
  const ImageSource& source = *static_cast<const ImageSource*>(from);
  const bool channels_last = is_channels_last(source.strides, shape.C);
  const StagedRange rows = staged_range(group.tile * group.y - shape.padding[0], size.rows, shape.H);
  const StagedRange cols = staged_range(group.tile * group.x - shape.padding[1], size.cols, shape.W);
  const int64_t count = cols.end - cols.begin;
  for (int64_t i = 0; i < group.images; ++i) {
    const T* image = static_cast<const T*>(source.data) + (group.n + i) * source.strides[0] +
                     source.first_channel * source.strides[1];
    float* out = staged + i * size.image();
    zero_outside(rows, cols, size, out);
    const T* x = image + (rows.origin + rows.begin) * source.strides[2] +
                 (cols.origin + cols.begin) * source.strides[3];
    float* inside = out + rows.begin * size.row() + cols.begin * size.channels;
    const int64_t lines = rows.end - rows.begin;
    if (channels_last)
      for (int64_t r = 0; r < lines; ++r)
        stage_channels_last(x + r * source.strides[2], source.strides[3], shape.C, count,
                            inside + r * size.row(), size.channels);
    else
      // All rows of some channels before the next: each of the kLanes streams of reads stays on one plane.
      for (int64_t c = 0; c < shape.C; c += kLanes)
        for (int64_t r = 0; r < lines; ++r)
          stage_channels_first(x + c * source.strides[1] + r * source.strides[2], source.strides[1],
                               shape.C - c, count, inside + r * size.row() + c, size.channels);
  }
}
