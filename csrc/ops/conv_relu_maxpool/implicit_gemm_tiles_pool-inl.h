// relu(max(sums) + bias) of 32 channels at a time, from the sums of an implicit GEMM of AMX tiles:
// [position][kPairOutputs] in fp32. One thread. Saves one byte a pooled element where asked.

// A position of a window: floats from the window's origin, and its record byte.
struct SumTap {
  int64_t offset;
  int k;
};

// The largest value that is stored as zero: AMX's sums have no denormals, and neither has the conversion to
// bf16.
constexpr float kLargestFlushed = 0x1.fffffcp-127f;

// relu(max + bias) of kLanes channels, and the place of the maximum if `kRecord`.
template <int kTaps, bool kRecord>
FASTDL_INLINE Vec pool_lanes(const float* origin, const SumTap* taps, int64_t count, Vec bias,
                             VecInt& where) {
  if (kTaps != 0) count = kTaps;
  Vec best = set1(-__builtin_inff());
  where = VecInt{} + (count > 0 ? taps[0].k : 0);
  if (kTaps == 1) {
    best = load(origin + taps[0].offset);
  } else if (kTaps == 4 && !kRecord) {
    best = max_of_4(load(origin + taps[0].offset), load(origin + taps[1].offset),
                    load(origin + taps[2].offset), load(origin + taps[3].offset));
  } else {
#pragma GCC unroll 9
    for (int64_t t = 0; t < count; ++t)
      keep_max(best, where, load(origin + taps[t].offset), VecInt{} + taps[t].k);
  }
  if (!kRecord) return max(zero(), best + bias);  // NaN stays
  bias_relu(best, where, bias, set1(kLargestFlushed));
  return best;
}

// One output pixel of kPairOutputs channels. `bias` holds as many.
template <int kTaps, bool kRecord>
FASTDL_INLINE void pool_channels(const float* origin, const SumTap* taps, int64_t count, const float* bias,
                                 BFloat16* output, uint8_t* record) {
  for (int64_t c = 0; c < kPairOutputs; c += 2 * kLanes) {
    VecInt where[2];
    const int64_t next = c + kLanes;
    const Vec low = pool_lanes<kTaps, kRecord>(origin + c, taps, count, load(bias + c), where[0]),
              high = pool_lanes<kTaps, kRecord>(origin + next, taps, count, load(bias + next), where[1]);
    store_narrowed(output + c, low, high);
    if (kRecord) store_bytes(record + c, where[0]), store_bytes(record + next, where[1]);
  }
}

// Where pooled pixels go: `pixel` apart, one row after the other.
struct PooledPixels {
  BFloat16* output;
  uint8_t* record;  // or null
  int64_t pixel, channels;
};

// Output pixels side by side whose windows have the same taps, `step` floats apart.
template <int kTaps, bool kRecord>
inline void pool_pixels(const float* origin, int64_t step, int64_t pixels, const SumTap* taps, int64_t count,
                        const float* bias, PooledPixels& to) {
  for (int64_t i = 0; i < pixels; ++i, origin += step) {
    if (to.channels == kPairOutputs) {
      pool_channels<kTaps, kRecord>(origin, taps, count, bias, to.output, to.record);
    } else {
      BFloat16 output[kPairOutputs];
      uint8_t record[kPairOutputs];
      pool_channels<kTaps, kRecord>(origin, taps, count, bias, output, record);
      std::memcpy(to.output, output, static_cast<size_t>(to.channels) * sizeof(BFloat16));
      if (kRecord) std::memcpy(to.record, record, static_cast<size_t>(to.channels));
    }
    to.output += to.pixel;
    if (kRecord) to.record += to.pixel;
  }
}

template <bool kRecord>
inline void pool_pixels(const float* origin, int64_t step, int64_t pixels, const SumTap* taps, int64_t count,
                        const float* bias, PooledPixels& to) {
  if (count == 1) return pool_pixels<1, kRecord>(origin, step, pixels, taps, count, bias, to);
  if (count == 4) return pool_pixels<4, kRecord>(origin, step, pixels, taps, count, bias, to);
  pool_pixels<0, kRecord>(origin, step, pixels, taps, count, bias, to);
}

// Output rows `rows` from the sums of conv rows from `first_row` on, `length` positions a row.
template <bool kRecord>
inline void pool_strip(const ConvReluMaxpoolForward& a, const float* sums, int64_t first_row, int64_t length,
                       Range rows, const float* bias, PooledPixels to) {
  const PoolGeometry& p = a.pool;
  SumTap taps[256];
  if (!p.present) {
    taps[0] = {0, 0};
    for (int64_t oh = rows.begin; oh < rows.end; ++oh)
      pool_pixels<false>(sums + (oh - first_row) * length * kPairOutputs, kPairOutputs, p.OW, taps, 1, bias,
                         to);
    return;
  }
  // Columns whose windows lie inside.
  const int64_t beyond = a.conv.CW - 1 - (p.size[1] - 1) * p.dilation[1] + p.padding[1];
  const Range whole = {tiles_of(p.padding[1], p.stride[1]),
                       beyond < 0 ? 0 : smaller(p.OW, beyond / p.stride[1] + 1)};
  for (int64_t oh = rows.begin; oh < rows.end; ++oh) {
    const int64_t h = oh * p.stride[0] - p.padding[0];
    const Range kh = taps_inside(h, p.dilation[0], p.size[0], a.conv.CH);
    for (int64_t ow = 0; ow < p.OW;) {
      const int64_t w = ow * p.stride[1] - p.padding[1];
      const Range kw = taps_inside(w, p.dilation[1], p.size[1], a.conv.CW);
      const int64_t pixels = whole.begin <= ow && ow < whole.end ? whole.end - ow : 1;
      int64_t count = 0;
      for (int64_t y = kh.begin; y < kh.end; ++y)
        for (int64_t x = kw.begin; x < kw.end; ++x)
          taps[count++] = {(y * p.dilation[0] * length + x * p.dilation[1]) * kPairOutputs,
                           static_cast<int>(y * p.size[1] + x)};
      pool_pixels<kRecord>(sums + ((h - first_row) * length + w) * kPairOutputs, p.stride[1] * kPairOutputs,
                           pixels, taps, count, bias, to);
      ow += pixels;
    }
  }
}
