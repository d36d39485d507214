// A tile of the convolution of contiguous images: conv[channels][rows][CW] = weight[channels][C KH KW] times
// the pixels' windows, which are packed a panel of pixels at a time, from rows staged with their padding. One
// thread. Saves nothing.

// What a block of input channels is staged and multiplied as. Its taps are in the order of the weight.
struct PlanePlan {
  ConvGeometry staged_geometry;  // C: channels of a block
  StagedInput input;
  int64_t taps, blocks, block_depth;  // KH KW; blocks of channels; depths of the packed weight of a block
  bool pointwise;                     // the windows are the image's own rows
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
  plan.pointwise = plan.taps == 1 && g.CH == g.H && g.CW == g.W && x_strides[3] == 1 && x_strides[2] == g.W;
  return plan;
}

// Panel `panel` of all blocks of weight [C_out, C KH KW]: [blocks][panels][block_depth / kLanes][kPanelRows]
// [kLanes].
inline void pack_plane_weight(const float* weight, const ConvGeometry& g, const PlanePlan& plan,
                              int64_t panel, int64_t panels, float* packed) {
  const int64_t depth = g.C * plan.taps, each = plan.staged_geometry.C * plan.taps;
  for (int64_t b = 0; b < plan.blocks; ++b) {
    float* to = packed + (b * panels + panel) * plan.block_depth * kPanelRows;
    const int64_t depths = smaller(depth - b * each, each);
    for (int64_t k = 0; k < depths; k += kLanes)
      for (int64_t i = 0; i < kPanelRows; ++i, to += kLanes) {
        const int64_t row = panel * kPanelRows + i;
        store(to, row < g.C_out ? load_some(weight + row * depth + b * each + k, depths - k) : zero());
      }
  }
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

// right[depths][kGemmWidth] of pixels [pixel, pixel + kGemmWidth) of a tile of `rows` rows.
inline void pack_pixels(const float* staged, int64_t row_step, const int32_t* offset, int64_t depths,
                        int64_t rows, int64_t CW, int64_t pixel, float* right) {
  if (CW < kLanes) {
    const float* from[kGemmWidth];
    for (int64_t i = 0; i < kGemmWidth; ++i)
      from[i] = staged + smaller((pixel + i) / CW, rows - 1) * row_step + (pixel + i) % CW;
    for (int64_t k = 0; k < depths; ++k, right += kGemmWidth)
      for (int64_t i = 0; i < kGemmWidth; ++i) right[i] = from[i][offset[k]];
    return;
  }
  VecInt lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  for (int j = 0; j < kGemmVecs; ++j, right += kLanes) {
    const PixelVector v = pixel_vector(staged, row_step, rows, CW, pixel + j * kLanes);
    float* to = right;
    if (v.second == kLanes)
      for (int64_t k = 0; k < depths; ++k, to += kGemmWidth) store(to, load(v.from + offset[k]));
    else
      for (int64_t k = 0; k < depths; ++k, to += kGemmWidth) store(to, load_pixels(v, offset[k], lanes));
  }
}

// The same where windows are the image's own pixels; nothing past `left` of them is read.
inline void pack_pointwise(const float* from, int64_t plane, int64_t depths, int64_t left, float* right) {
  if (left >= kGemmWidth) {
    for (int64_t k = 0; k < depths; ++k, from += plane, right += kGemmWidth)
#pragma GCC unroll 4
      for (int j = 0; j < kGemmVecs; ++j) store(right + j * kLanes, load(from + j * kLanes));
    return;
  }
  for (int64_t k = 0; k < depths; ++k, from += plane, right += kGemmWidth)
    for (int j = 0; j < kGemmVecs; ++j)
      store(right + j * kLanes, load_some(from + j * kLanes, left - j * kLanes));
}

// Conv rows `rows` of image x and channel panels `panels`: conv[channel][pitch], channels from the first
// panel's.
inline void multiply_plane_tile(const ConvReluMaxpoolForward& a, const PlanePlan& plan, const int32_t* offset,
                                const float* packed, const float* x, Range rows, Range panels, float* staged,
                                float* right, float* conv, int64_t pitch) {
  const ConvGeometry& g = a.conv;
  const int64_t count = rows.end - rows.begin, pixels = count * g.CW;
  const int64_t all_panels = parts_of(g.C_out, kPanelRows), row_step = g.stride[0] * plan.input.row;
  for (int64_t b = 0; b < plan.blocks; ++b) {
    const int64_t c = b * plan.staged_geometry.C;
    ConvGeometry block = plan.staged_geometry;
    block.C = smaller(g.C - c, block.C);
    const int64_t depths = block.C * plan.taps;
    const float* image = x + c * a.x_strides[1];
    if (!plan.pointwise) {
      const int64_t first = rows.begin * g.stride[0] - g.padding[0];
      const Range in = {first, first + (count - 1) * g.stride[0] + (g.KH - 1) * g.dilation[0] + 1};
      stage_rows(image, a.x_strides, block, plan.input, in, staged);
    }
    const float* left = packed + b * all_panels * plan.block_depth * kPanelRows;
    for (int64_t pixel = 0; pixel < pixels; pixel += kGemmWidth) {
      if (plan.pointwise)
        pack_pointwise(image + rows.begin * g.CW + pixel, a.x_strides[1], depths, pixels - pixel, right);
      else
        pack_pixels(staged, row_step, offset, depths, count, g.CW, pixel, right);
      for (int64_t panel = panels.begin; panel < panels.end; ++panel)
        (b > 0 ? multiply_panels<true>
               : multiply_panels<false>)(left + panel * plan.block_depth * kPanelRows, right, depths,
                                         conv + (panel - panels.begin) * kPanelRows * pitch + pixel, pitch);
    }
  }
}
