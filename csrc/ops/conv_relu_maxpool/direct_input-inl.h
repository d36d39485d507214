// What a task reads: weights packed for vectors of output channels, and rows of the input staged in fp32 with
// their zero padding. Staged rows are [row][channel][slot][length]: one slot for each phase of the column
// stride that a tap needs, so that neighbouring outputs read neighbouring floats for every stride and
// dilation.

constexpr int kVectors = 2;                // of output channels in a block
constexpr int kBlock = kVectors * kLanes;  // output channels computed together

FASTDL_INLINE int64_t rounded_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

struct StagedInput {
  int64_t length, slots, row;  // floats of a slot; slots of a channel; floats of a row of all channels
  const int32_t* offset;       // [C * KH * KW] of a tap, from the first row of its window
};

// The column phases that taps need are the first multiples of the dilation modulo the stride: they repeat
// after stride / gcd(stride, dilation).
FASTDL_INLINE StagedInput stage_sizes(const ConvGeometry& g) {
  StagedInput s = {};
  int64_t gcd = g.stride[1], rest = g.dilation[1];
  while (rest != 0) {
    const int64_t next = gcd % rest;
    gcd = rest;
    rest = next;
  }
  s.slots = smaller(g.KW, g.stride[1] / gcd);
  s.length = rounded_up(g.CW + (g.KW - 1) * g.dilation[1] / g.stride[1], 4);
  s.row = g.C * s.slots * s.length;
  return s;
}

// Fills offset[C * KH * KW]: tap kw is in slot kw % slots, whose phase is that of tap kw % slots.
FASTDL_INLINE void stage_offsets(const ConvGeometry& g, const StagedInput& s, int32_t* offset) {
  for (int64_t c = 0; c < g.C; ++c)
    for (int64_t kh = 0; kh < g.KH; ++kh)
      for (int64_t kw = 0; kw < g.KW; ++kw)
        *offset++ =
            static_cast<int32_t>(kh * g.dilation[0] * s.row + (c * s.slots + kw % s.slots) * s.length +
                                 kw * g.dilation[1] / g.stride[1]);
}

// One channel of one row: the padding is written as well.
template <class T>
FASTDL_INLINE void stage_channel(const T* row, int64_t step, const StagedInput& s, const ConvGeometry& g,
                                 float* to) {
  for (int64_t slot = 0; slot < s.slots; ++slot, to += s.length) {
    const int64_t stride = g.stride[1], first = slot * g.dilation[1] % stride - g.padding[1];
    int64_t begin = first < 0 ? smaller((-first + stride - 1) / stride, s.length) : 0;
    int64_t end = first < g.W ? smaller((g.W - 1 - first) / stride + 1, s.length) : 0;
    if (end < begin) end = begin;
    for (int64_t j = 0; j < begin; ++j) to[j] = 0;
    for (int64_t j = end; j < s.length; ++j) to[j] = 0;
    const T* from = row + first * step;
    if (stride * step == 2) {
      copy_even(from + 2 * begin, end - begin, to + begin);
      continue;
    }
    int64_t j = begin;
    if (stride * step == 1) {
      for (; j + kLanes <= end; j += kLanes) store(to + j, load(from + j));
      if (j < end)
        store_first(to + j, load_first(from + j, static_cast<int>(end - j)), static_cast<int>(end - j));
    } else {
      for (; j < end; ++j) to[j] = to_float(from[j * stride * step]);
    }
  }
}

// Rows begin, begin + step, ... before end of an image; rows outside it are zero.
template <class T>
void stage_rows(const T* image, const int64_t* strides, const ConvGeometry& g, const StagedInput& s,
                Range rows, int64_t step, float* staged) {
  for (int64_t h = rows.begin; h < rows.end; h += step, staged += s.row) {
    if (h < 0 || h >= g.H) {
      std::memset(staged, 0, static_cast<size_t>(s.row) * sizeof(float));
      continue;
    }
    for (int64_t c = 0; c < g.C; ++c)
      stage_channel(image + h * strides[2] + c * strides[1], strides[3], s, g,
                    staged + c * s.slots * s.length);
  }
}

// Channels [block * kBlock, ...) of weight [C_out, taps] as packed[taps][kBlock]; channels past C_out are
// zero.
template <class T>
void pack_direct_block(const T* weight, int64_t C_out, int64_t taps, int64_t block, float* packed) {
  for (int v = 0; v < kVectors; ++v) {
    const int64_t first = block * kBlock + v * kLanes, channels = smaller(kLanes, C_out - first);
    for (int64_t t = 0; t < taps; t += kLanes) {
      const int left = static_cast<int>(smaller(taps - t, kLanes));
      Vec rows[kLanes];
      for (int k = 0; k < kLanes; ++k)
        rows[k] = k < channels ? load_first(weight + (first + k) * taps + t, left) : zero();
      transpose(rows);
      for (int i = 0; i < left; ++i) store(packed + (t + i) * kBlock + v * kLanes, rows[i]);
    }
  }
}
