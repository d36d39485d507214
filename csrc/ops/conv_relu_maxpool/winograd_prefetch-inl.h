// Asks for the memory a group will read or write while the one before multiplies, a few lines after each
// position: the products leave the memory idle, and staging from memory took an eighth of the time.

// Runs of `bytes` bytes, counts[0] x counts[1] x counts[2] of them.
struct Footprint {
  const char* data;
  int64_t counts[3], strides[3];  // strides in bytes
  int64_t bytes;
};

// What the tiles of `group` read of a source; the second is a gradient's record or output.
struct Reads {
  Footprint first, second;
};
using ReadsFunction = Reads (*)(const void* source, const WinogradShape& shape, const WinogradGroup& group);

// The elements [rows] x [cols] of channels [0, C) and `images` images from `data` on.
FASTDL_INLINE Footprint footprint(const void* data, int64_t element, const int64_t* strides, int64_t images,
                                  int64_t C, int64_t rows, int64_t cols) {
  const char* p = static_cast<const char*>(data);
  const int64_t n = strides[0] * element, c = strides[1] * element, h = strides[2] * element,
                w = strides[3] * element;
  if (is_channels_last(strides, C)) {
    if (h == cols * w) return {p, {images, 1, 1}, {n, 0, 0}, rows * h};
    return {p, {images, rows, 1}, {n, h, 0}, (cols - 1) * w + C * element};
  }
  if (h == cols * w) return {p, {images, C, 1}, {n, c, 0}, rows * h};
  return {p, {images, C, rows}, {n, c, h}, cols * w};
}

// Walks over a footprint a few cache lines at a time: more at once would wait for each other.
template <bool kWrite>
class Prefetch {
 public:
  Prefetch(const Footprint& f, int64_t steps)
      : f_(f),
        run_lines_(f.bytes / kLine + 1),
        left_(f.counts[0] * f.counts[1] * f.counts[2] * run_lines_),
        step_((left_ + steps - 1) / steps),
        line_(run_lines_),
        p_(f.data) {}
  void step() {
    for (int64_t n = step_ < left_ ? step_ : left_; n > 0; --n, --left_) {
      __builtin_prefetch(p_, kWrite, 2);
      p_ += kLine;
      if (--line_ == 0) next_run();
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  void next_run() {
    line_ = run_lines_;
    for (int axis = 2; axis >= 0 && ++at_[axis] == f_.counts[axis]; --axis) at_[axis] = 0;
    p_ = f_.data + at_[0] * f_.strides[0] + at_[1] * f_.strides[1] + at_[2] * f_.strides[2];
  }
  const Footprint f_;
  const int64_t run_lines_;
  int64_t left_, step_, line_, at_[3] = {};
  const char* p_;
};

// What stage_image reads for a group.
template <class T>
Reads image_reads(const void* from, const WinogradShape& shape, const WinogradGroup& group) {
  const ImageSource& source = *static_cast<const ImageSource*>(from);
  const StagedSize size = staged_size(group, shape.C, 2);
  const StagedRange rows = staged_range(group.tile * group.y - shape.padding[0], size.rows, shape.H);
  const StagedRange cols = staged_range(group.tile * group.x - shape.padding[1], size.cols, shape.W);
  if (rows.begin == rows.end || cols.begin == cols.end) return {};
  const int64_t at = group.n * source.strides[0] + source.first_channel * source.strides[1] +
                     (rows.origin + rows.begin) * source.strides[2] +
                     (cols.origin + cols.begin) * source.strides[3];
  return {footprint(static_cast<const T*>(source.data) + at, sizeof(T), source.strides, group.images, shape.C,
                    rows.end - rows.begin, cols.end - cols.begin),
          {}};
}

// What stage_pooled_gradient or stage_unpooled_gradient reads for a group, but for a row or column at its
// edges.
template <class T>
Reads gradient_reads(const void* from, const WinogradShape& shape, const WinogradGroup& group) {
  const GradientSource& source = *static_cast<const GradientSource*>(from);
  const int64_t side = source.record ? group.tile / 2 : group.tile;
  const int64_t y = side * group.y, x = side * group.x;
  const int64_t rows = source.OH - y < side * group.rows ? source.OH - y : side * group.rows;
  const int64_t cols = source.OW - x < side * group.cols ? source.OW - x : side * group.cols;
  if (rows <= 0 || cols <= 0) return {};
  const int64_t* strides = source.strides;
  const int64_t at =
      group.n * strides[0] + source.first_channel * strides[1] + y * strides[2] + x * strides[3];
  const Footprint grad = footprint(static_cast<const T*>(source.grad_output) + at, sizeof(T), strides,
                                   group.images, shape.C, rows, cols);
  if (!source.record && !source.output) return {grad, {}};
  if (source.record)
    return {grad, footprint(source.record + at, 1, strides, group.images, shape.C, rows, cols)};
  return {grad, footprint(static_cast<const T*>(source.output) + at, sizeof(T), strides, group.images,
                          shape.C, rows, cols)};
}
