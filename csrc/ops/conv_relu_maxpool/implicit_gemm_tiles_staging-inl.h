// What the implicit GEMM of AMX tiles reads: rows of the input in bf16 with their zero padding, 32 channels a
// pixel, and the weight as right operands. One thread. Saves nothing.
//
// Staged input is [chunk of channels][row slot][column slot][image][row][column][32], one slot for each phase
// of the stride that a tap needs. Neighbouring outputs then read neighbouring pixels for every stride and
// dilation, and 16 of them, 1 KB in a row, are a left operand.

struct TileStage {
  int64_t chunks, taps;        // of kTileDepth channels; KH KW
  int64_t slots[2], reach[2];  // phases; rows and columns that taps add to those of the convolution
  int64_t length;              // pixels of a staged row
  bool planes;                 // the input: channels apart, pixels side by side
};

FASTDL_INLINE int64_t phases(int64_t stride, int64_t dilation, int64_t taps) {
  int64_t gcd = stride, rest = dilation;
  while (rest != 0) {
    const int64_t next = gcd % rest;
    gcd = rest;
    rest = next;
  }
  return smaller(taps, stride / gcd);
}

FASTDL_INLINE TileStage tile_stage(const ConvGeometry& g, const int64_t* x_strides) {
  TileStage s = {};
  const int64_t kernel[2] = {g.KH, g.KW};
  s.chunks = tiles_of(g.C, kTileDepth), s.taps = g.KH * g.KW;
  for (int i = 0; i < 2; ++i) {
    s.slots[i] = phases(g.stride[i], g.dilation[i], kernel[i]);
    s.reach[i] = (kernel[i] - 1) * g.dilation[i] / g.stride[i];
  }
  s.length = g.CW + s.reach[1];
  s.planes = (g.W == 1 || x_strides[3] == 1) && (g.C == 1 || x_strides[1] != 1);
  return s;
}

// Where a tap's left operand begins, from that of the output's pixel; slots are `plane` pixels apart.
FASTDL_INLINE void tap_offsets(const ConvGeometry& g, const TileStage& s, int64_t plane, int64_t* offset) {
  for (int64_t chunk = 0; chunk < s.chunks; ++chunk)
    for (int64_t kh = 0; kh < g.KH; ++kh)
      for (int64_t kw = 0; kw < g.KW; ++kw) {
        const int64_t slot = (chunk * s.slots[0] + kh % s.slots[0]) * s.slots[1] + kw % s.slots[1];
        const int64_t row = kh * g.dilation[0] / g.stride[0], column = kw * g.dilation[1] / g.stride[1];
        *offset++ = (slot * plane + row * s.length + column) * kTileDepth;
      }
}

// place[w]: pixels from a staged row's beginning to that of input column w, or -1: no tap needs it.
FASTDL_INLINE void column_places(const ConvGeometry& g, const TileStage& s, int64_t plane, int64_t* place) {
  for (int64_t w = 0; w < g.W; ++w) place[w] = -1;
  for (int64_t slot = 0; slot < s.slots[1]; ++slot) {
    const int64_t first = slot * g.dilation[1] % g.stride[1] - g.padding[1];
    const Range inside = taps_inside(first, g.stride[1], s.length, g.W);
    for (int64_t j = inside.begin; j < inside.end; ++j) place[first + j * g.stride[1]] = slot * plane + j;
  }
}

FASTDL_INLINE void clear_pixels(BFloat16* to, int64_t pixels) {
  std::memset(to, 0, static_cast<size_t>(pixels * kTileDepth) * sizeof(BFloat16));
}

// `pixels` pixels of `channels` channels, planes `step` apart; the first is column 0 of the row `to`.
FASTDL_INLINE void stage_planes(const BFloat16* from, int64_t step, int64_t channels, int64_t pixels,
                                int64_t W, const int64_t* place, int64_t row, BFloat16* to) {
  int64_t w = 0;
  for (int64_t i = 0; i < pixels; i += kLanes) {
    const int n = static_cast<int>(smaller(pixels - i, kLanes));
    for (int64_t c = 0; c < kTileDepth; c += 2 * kLanes) {
      Vec pairs[kLanes];
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) {
        const int64_t channel = c + 2 * j;
        const BFloat16* first = from + channel * step + i;
        pairs[j] = channel >= channels ? zero()
                                       : reinterpret_cast<Vec>(bit_pair_lanes(
                                             first, channel + 1 < channels ? first + step : nullptr, n));
      }
      transpose(pairs);
      int64_t column = w;
      BFloat16* row_at = to + c;
      for (int j = 0; j < n; ++j) {
        if (place[column] >= 0)
          store_lanes(row_at + place[column] * kTileDepth, reinterpret_cast<VecBits>(pairs[j]));
        if (++column == W) column = 0, row_at += row;
      }
    }
    for (w += n; w >= W; w -= W) to += row;
  }
}

// One row's columns of a slot, channels side by side.
FASTDL_INLINE void stage_pixels(const BFloat16* from, int64_t step, int64_t channels, int64_t count,
                                BFloat16* to) {
  constexpr int64_t kElements = 2 * kLanes;
  for (int64_t i = 0; i < count; ++i, from += step, to += kTileDepth)
    for (int64_t c = 0; c < kTileDepth; c += kElements) {
      const int64_t left = channels - c;
      store_lanes(to + c, left >= kElements ? Dot<BFloat16>::get(from + c)
                          : left > 0        ? Dot<BFloat16>::get_first(from + c, static_cast<int>(left))
                                            : VecBits{});
    }
}

// The input under conv rows `conv` of an image; rows and columns outside it are zero.
inline void stage_image(const ConvReluMaxpoolForward& a, const TileStage& s, const BFloat16* image,
                        Range conv, int64_t plane, const int64_t* place, BFloat16* staged) {
  const ConvGeometry& g = a.conv;
  const int64_t *strides = a.x_strides, row = s.length * kTileDepth;
  const int64_t rows = conv.end - conv.begin + s.reach[0];
  for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
    const int64_t channels = smaller(g.C - chunk * kTileDepth, kTileDepth);
    const BFloat16* from = image + chunk * kTileDepth * strides[1];
    for (int64_t slot = 0; slot < s.slots[0]; ++slot, staged += s.slots[1] * plane * kTileDepth) {
      const int64_t first = conv.begin * g.stride[0] + slot * g.dilation[0] % g.stride[0] - g.padding[0];
      const Range inside = taps_inside(first, g.stride[0], rows, g.H);
      for (int64_t across = 0; across < s.slots[1]; ++across) {
        BFloat16* to = staged + across * plane * kTileDepth;
        clear_pixels(to, inside.begin * s.length);
        clear_pixels(to + inside.end * row, (rows - inside.end) * s.length);
        const int64_t left = across * g.dilation[1] % g.stride[1] - g.padding[1];
        const Range columns = taps_inside(left, g.stride[1], s.length, g.W);
        for (int64_t j = inside.begin; j < inside.end; ++j) {
          clear_pixels(to + j * row, columns.begin);
          clear_pixels(to + j * row + columns.end * kTileDepth, s.length - columns.end);
          if (!s.planes)
            stage_pixels(from + (first + j * g.stride[0]) * strides[2] +
                             (left + columns.begin * g.stride[1]) * strides[3],
                         g.stride[1] * strides[3], channels, columns.end - columns.begin,
                         to + j * row + columns.begin * kTileDepth);
        }
      }
      if (!s.planes || inside.begin == inside.end) continue;
      // Rows that follow each other in memory are one: 7 columns would fill half of a vector.
      const int64_t together = g.stride[0] == 1 && strides[2] == g.W ? inside.end - inside.begin : 1;
      for (int64_t j = inside.begin; j < inside.end; j += together)
        stage_planes(from + (first + j * g.stride[0]) * strides[2], strides[1], channels, together * g.W, g.W,
                     place, row, staged + j * row);
    }
  }
}

// The right operands of 32 channels and 16 outputs, one a tap.
inline void pack_tile_weight(const ConvGeometry& g, const BFloat16* weight, int64_t chunk, int64_t output,
                             BFloat16* tiles) {
  const int64_t taps = g.KH * g.KW, first = chunk * kTileDepth, depth = smaller(g.C - first, kTileDepth);
  const int64_t outputs = smaller(g.C_out - output, kTileHeight), row = g.C * taps;
  weight += output * row + first * taps;
  if (taps == 1) return pack_right_transposed(weight, row, depth, outputs, tiles);
  for (int64_t pair = 0; pair < kTileHeight; ++pair)
    for (int64_t at = 0; at < kTileHeight; at += kLanes)
      for (int64_t t = 0; t < taps; t += kLanes) {
        const int n = static_cast<int>(smaller(taps - t, kLanes));
        Vec rows[kLanes];
        for (int64_t i = 0; i < kLanes; ++i) {
          const BFloat16* from = weight + (at + i) * row + 2 * pair * taps + t;
          rows[i] = at + i < outputs && 2 * pair < depth
                        ? reinterpret_cast<Vec>(
                              bit_pair_lanes(from, 2 * pair + 1 < depth ? from + taps : nullptr, n))
                        : zero();
        }
        transpose(rows);
        for (int i = 0; i < n; ++i)
          store_lanes(tiles + (t + i) * kTileElements + pair * kTileDepth + 2 * at,
                      reinterpret_cast<VecBits>(rows[i]));
      }
}
