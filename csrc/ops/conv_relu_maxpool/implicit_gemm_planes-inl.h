// A tile of the convolution of contiguous images: conv[channels][rows][CW] = weight[channels][C KH KW] times
// the pixels' windows, which are packed some panels of pixels at a time, from rows staged with their padding.
// One thread. Saves nothing.

// Floats of packed pixels that stay in L2, beside what passes through it: 208 pixels of 256 depths, an image
// of 14 x 14 at once.
constexpr int64_t kPackedPixels = 13 * 16 * 256;

// What a block of input channels is staged and multiplied as. Its taps are in the order of the weight.
struct PlanePlan {
  ConvGeometry staged_geometry;  // C: channels of a block
  StagedInput input;
  int64_t taps, blocks, block_depth;  // KH KW; blocks of channels; depths of a packed panel of a block
  int64_t pixels;                     // packed at a time: whole panels
  int64_t panel;                      // floats from one packed panel of pixels to the next
  bool pointwise;                     // the windows are the image's own rows
  bool strided;                       // or every so many pixels of them
};

FASTDL_INLINE PlanePlan plane_plan(const ConvGeometry& g, const int64_t* x_strides) {
  PlanePlan plan = {};
  plan.taps = g.KH * g.KW;
  const int64_t most = plan.taps < kDepth ? kDepth / plan.taps : 1;
  plan.blocks = parts_of(g.C, most);
  plan.staged_geometry = g;
  plan.staged_geometry.C = parts_of(g.C, plan.blocks);
  plan.blocks = parts_of(g.C, plan.staged_geometry.C);
  plan.input = stage_sizes(plan.staged_geometry);
  plan.block_depth = rounded_up(plan.staged_geometry.C * plan.taps, kLanes);
  const int64_t panels = kPackedPixels / (plan.block_depth * kGemmWidth);
  plan.pixels = (panels < 1 ? 1 : smaller(panels, 64)) * kGemmWidth;
  plan.panel = plan.block_depth * kGemmWidth + 16;  // panels a power of two apart would share a set of L1
  const bool one_tap = plan.taps == 1 && g.padding[0] == 0 && g.padding[1] == 0 && x_strides[3] == 1;
  plan.pointwise = one_tap && g.CH == g.H && g.CW == g.W && x_strides[2] == g.W;
  plan.strided = one_tap && !plan.pointwise;
  return plan;
}

// What a panel of weights reads: kPanelRows rows of `depths` floats, those past `rows` are zero.
struct WeightRows {
  const float* from;
  int64_t row, rows, depths;
};

// packed[depths / kLanes][kPanelRows][kLanes]
inline void pack_plane_weight(const WeightRows& w, float* packed) {
  int64_t k = 0;
  if (w.rows == kPanelRows)
    for (; k + kLanes <= w.depths; k += kLanes)
#pragma GCC unroll 8
      for (int i = 0; i < kPanelRows; ++i, packed += kLanes) store(packed, load(w.from + i * w.row + k));
  for (; k < w.depths; k += kLanes)
    for (int64_t i = 0; i < kPanelRows; ++i, packed += kLanes)
      store(packed, i < w.rows ? load_some(w.from + i * w.row + k, w.depths - k) : zero());
}

// Part `part` of `parts` of the rows: each is a short stream in a page of its own, where no hardware looks
// ahead.
FASTDL_INLINE void prefetch_weight(const WeightRows& w, int64_t part, int64_t parts) {
  constexpr int64_t kLine = 16;
  const int64_t lines = parts_of(w.depths, kLine), end = (part + 1) * lines / parts;
  for (int64_t line = part * lines / parts; line < end; ++line)
    for (int64_t i = 0; i < w.rows; ++i) __builtin_prefetch(w.from + i * w.row + line * kLine);
}

// Where a vector of pixels lies in the staged rows: lanes from `second` on come from the row after.
struct PixelVector {
  const float *from, *next;
  int64_t second;
};

// Pixels [pixel, pixel + kLanes) of a tile; beyond the last row, any that may be read.
FASTDL_INLINE PixelVector pixel_vector(const float* staged, int64_t row_step, int64_t rows, int64_t CW,
                                       int64_t pixel) {
  const int64_t row = smaller(pixel / CW, rows - 1), column = row == pixel / CW ? pixel % CW : 0;
  const int64_t second = smaller(CW - column, kLanes);
  return {staged + row * row_step + column, staged + smaller(row + 1, rows - 1) * row_step - second, second};
}

FASTDL_INLINE Vec load_pixels(const PixelVector& v, int64_t offset, VecInt lanes) {
  const Vec first = load(v.from + offset);
  return select(lanes < static_cast<int>(v.second), first, load(v.next + offset));
}

// right[depths][kGemmWidth] of pixels [pixel, pixel + kGemmWidth) of a tile of `rows` rows; vectors past
// `vecs` are left as they are.
inline void pack_pixels(const float* staged, int64_t row_step, const int32_t* offset, int64_t depths,
                        int64_t rows, int64_t CW, int64_t pixel, int64_t vecs, float* right) {
  if (CW < kLanes) {
    const float* from[kGemmWidth];
    for (int64_t i = 0; i < kGemmWidth; ++i)
      from[i] = staged + smaller((pixel + i) / CW, rows - 1) * row_step + (pixel + i) % CW;
    for (int64_t k = 0; k < depths; ++k, right += kGemmWidth)
      for (int64_t i = 0; i < vecs * kLanes; ++i) right[i] = from[i][offset[k]];
    return;
  }
  VecInt lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  for (int j = 0; j < vecs; ++j, right += kLanes) {
    const PixelVector v = pixel_vector(staged, row_step, rows, CW, pixel + j * kLanes);
    float* to = right;
    if (v.second == kLanes)
      for (int64_t k = 0; k < depths; ++k, to += kGemmWidth) store(to, load(v.from + offset[k]));
    else
      for (int64_t k = 0; k < depths; ++k, to += kGemmWidth) store(to, load_pixels(v, offset[k], lanes));
  }
}

// The same of `pixels` pixels, where windows are the image's own: each depth of all panels in a run.
inline void pack_pointwise(const float* from, int64_t plane, int64_t depths, int64_t pixels, int64_t panel,
                           float* right) {
  // Each run lies in a page of its own, where no hardware looks ahead.
  constexpr int64_t kAhead = 4, kLine = 16;
  for (int64_t k = 0; k < depths; ++k, from += plane, right += kGemmWidth) {
    for (int64_t i = 0; i < pixels; i += kLine) __builtin_prefetch(from + kAhead * plane + i);
    float* to = right;
    int64_t i = 0;
    for (; i + kGemmWidth <= pixels; i += kGemmWidth, to += panel)
#pragma GCC unroll 4
      for (int j = 0; j < kGemmVecs; ++j) store(to + j * kLanes, load(from + i + j * kLanes));
    for (; i < pixels; i += kLanes, to += kLanes) store(to, load_some(from + i, pixels - i));
  }
}

// The same where they are every so many pixels of it, first brought together in `row`.
inline void pack_strided(const float* image, const int64_t* x_strides, const ConvGeometry& g,
                         const StagedInput& input, Range rows, Range pixels, int64_t panel, float* row,
                         float* right) {
  constexpr int64_t kAhead = 4, kLine = 16;
  const int64_t down = g.stride[0] * x_strides[2];
  image += rows.begin * down;
  for (int64_t c = 0; c < g.C; ++c, image += x_strides[1], right += kGemmWidth) {
    for (int64_t r = 0; r < rows.end - rows.begin; ++r) {
      const float* from = image + r * down;
      for (int64_t i = 0; i < g.W; i += kLine) __builtin_prefetch(from + kAhead * x_strides[1] + i);
      stage_channel(from, 1, input, g, row + r * g.CW);
    }
    pack_pointwise(row + pixels.begin, 0, 1, pixels.end - pixels.begin, panel, right);
  }
}

// Where a tile goes: conv[channel][row], channels from the first panel's.
struct PlaneTarget {
  float* conv;
  int64_t row;
  bool whole;                // whole panels may be written
  const TileFinish* finish;  // of its first channel and pixel, or null; no scale and bias: null
  Activation activation;     // of whole panels, after it: one that limits nothing
};

struct PlaneScratch {
  float *staged, *right, *left;
};

// Conv rows `rows` of image x and channel panels `panels`.
inline void multiply_plane_tile(const ConvReluMaxpoolForward& a, const PlanePlan& plan, const int32_t* offset,
                                const float* x, Range rows, Range panels, const PlaneScratch& scratch,
                                const PlaneTarget& target) {
  const ConvGeometry& g = a.conv;
  const int64_t count = rows.end - rows.begin, pixels = count * g.CW, depth = g.C * plan.taps;
  const int64_t stage_step = g.KH == 1 ? g.stride[0] : 1;
  const int64_t row_step = g.stride[0] / stage_step * plan.input.row;
  for (int64_t b = 0; b < plan.blocks; ++b) {
    const int64_t c = b * plan.staged_geometry.C;
    ConvGeometry staged = plan.staged_geometry;
    staged.C = smaller(g.C - c, staged.C);
    const int64_t depths = staged.C * plan.taps;
    const float* image = x + c * a.x_strides[1];
    if (!plan.pointwise && !plan.strided) {
      const int64_t first = rows.begin * g.stride[0] - g.padding[0];
      const Range in = {first, first + (count - 1) * g.stride[0] + (g.KH - 1) * g.dilation[0] + 1};
      stage_rows(image, a.x_strides, staged, plan.input, in, stage_step, scratch.staged);
    }
    const auto weight = [&](int64_t panel) -> WeightRows {
      const int64_t k = panel * kPanelRows;
      const float* from = static_cast<const float*>(a.weight) + k * depth + c * plan.taps;
      return {from, depth, smaller(g.C_out - k, kPanelRows), depths};
    };
    for (int64_t from = 0; from < pixels; from += plan.pixels) {
      const int64_t some = smaller(pixels - from, plan.pixels), across = parts_of(some, kGemmWidth);
      const auto vectors = [&](int64_t i) {
        return smaller(parts_of(some - i * kGemmWidth, kLanes), kGemmVecs);
      };
      if (plan.pointwise)
        pack_pointwise(image + rows.begin * g.CW + from, a.x_strides[1], depths, some, plan.panel,
                       scratch.right);
      else if (plan.strided)
        pack_strided(image, a.x_strides, staged, plan.input, rows, {from, from + some}, plan.panel,
                     scratch.staged, scratch.right);
      else
        for (int64_t i = 0; i < across; ++i)
          pack_pixels(scratch.staged, row_step, offset, depths, count, g.CW, from + i * kGemmWidth,
                      vectors(i), scratch.right + i * plan.panel);
      for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
        const WeightRows here = weight(panel), next = weight(smaller(panel + 1, panels.end - 1));
        pack_plane_weight(here, scratch.left);
        const int64_t channel = (panel - panels.begin) * kPanelRows;
        for (int64_t i = 0; i < across; ++i) {
          prefetch_weight(next, i, across);
          const int64_t vecs = vectors(i), pixel = from + i * kGemmWidth;
          const int64_t at = channel * target.row + pixel;
          const int64_t last = some - i * kGemmWidth - (vecs - 1) * kLanes;
          TileFinish finish = {};
          const bool finishes = target.finish != nullptr && b == plan.blocks - 1;
          if (finishes) {
            finish = *target.finish;
            finish.scale = finish.scale == nullptr ? kOnes : finish.scale + channel;
            finish.bias = finish.bias == nullptr ? kZeros : finish.bias + channel;
            if (finish.residual != nullptr) finish.residual += at;
          }
          multiply_tile(vecs, scratch.left, scratch.right + i * plan.panel, depths,
                        {target.conv + at, target.row, target.whole ? kPanelRows : here.rows,
                         target.whole ? kLanes : static_cast<int>(smaller(last, kLanes)), b > 0,
                         finishes ? &finish : nullptr});
        }
        if (target.activation != Activation::kNone && b == plan.blocks - 1)
          for (int64_t i = 0; i < here.rows; ++i)
            activate_values(target.conv + (channel + i) * target.row + from, some, target.activation);
      }
    }
  }
}
