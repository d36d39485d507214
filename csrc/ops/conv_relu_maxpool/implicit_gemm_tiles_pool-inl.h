// relu(max(sums) + bias) of 32 channels at a time, from the sums of an implicit GEMM of AMX tiles:
// [position][kPairOutputs] in fp32. One thread. Saves one byte a pooled element where asked.

// A position of a window: floats from the window's origin, and its record byte.
struct SumTap {
  int64_t offset;
  int k;
};

// bf16 values: with their record, or in the upper halves of 32-bit lanes that hold the record byte below, for
// what is still to be transposed.
FASTDL_INLINE void put_pooled(Vec best, VecInt where, int64_t left, BFloat16* output, uint8_t* record) {
  store_pooled<BFloat16>(best, where, left, output, record);
}
FASTDL_INLINE void put_pooled(Vec best, VecInt where, int64_t, float* lanes, uint8_t*) {
  const VecBits bits = rounded_to_upper_half(best) & 0xffff0000;
  store(lanes, reinterpret_cast<Vec>(bits | reinterpret_cast<VecBits>(where)));
}

// T: BFloat16, or float for such lanes, of whole vectors. `bias` holds whole vectors too.
template <int kTaps, bool kRecord, class T>
FASTDL_INLINE void pool_channels(const float* origin, const SumTap* taps, int64_t count, const float* bias,
                                 int64_t channels, T* output, uint8_t* record) {
  if (kTaps != 0) count = kTaps;
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vec best = set1(-__builtin_inff());
    VecInt where = VecInt{} + (count > 0 ? taps[0].k : 0);
    if (kTaps == 1) {
      best = load(origin + taps[0].offset + c);
    } else if (kTaps == 4 && !kRecord) {
      best = max_of_4(load(origin + taps[0].offset + c), load(origin + taps[1].offset + c),
                      load(origin + taps[2].offset + c), load(origin + taps[3].offset + c));
    } else {
#pragma GCC unroll 9
      for (int64_t t = 0; t < count; ++t)
        keep_max(best, where, load(origin + taps[t].offset + c), VecInt{} + taps[t].k);
    }
    bias_relu<BFloat16>(best, where, load(bias + c));
    put_pooled(best, where, channels - c, output + c, kRecord ? record + c : nullptr);
  }
}

// Where pooled pixels go: `pixel` apart, one row after the other.
template <class T>
struct PooledPixels {
  T* output;
  uint8_t* record;  // or null
  int64_t pixel, channels;
};

// Output pixels side by side whose windows have the same taps, `step` floats apart.
template <int kTaps, bool kRecord, class T>
inline void pool_pixels(const float* origin, int64_t step, int64_t pixels, const SumTap* taps, int64_t count,
                        const float* bias, PooledPixels<T>& to) {
  for (int64_t i = 0; i < pixels; ++i, origin += step) {
    if (to.channels == kPairOutputs)
      pool_channels<kTaps, kRecord>(origin, taps, count, bias, kPairOutputs, to.output, to.record);
    else
      pool_channels<kTaps, kRecord>(origin, taps, count, bias, to.channels, to.output, to.record);
    to.output += to.pixel;
    if (kRecord) to.record += to.pixel;
  }
}

template <bool kRecord, class T>
inline void pool_pixels(const float* origin, int64_t step, int64_t pixels, const SumTap* taps, int64_t count,
                        const float* bias, PooledPixels<T>& to) {
  if (count == 1) return pool_pixels<1, kRecord>(origin, step, pixels, taps, count, bias, to);
  if (count == 4) return pool_pixels<4, kRecord>(origin, step, pixels, taps, count, bias, to);
  pool_pixels<0, kRecord>(origin, step, pixels, taps, count, bias, to);
}

// Output rows `rows` from the sums of conv rows from `first_row` on, `length` positions a row.
template <bool kRecord, class T>
inline void pool_strip(const ConvReluMaxpoolForward& a, const float* sums, int64_t first_row, int64_t length,
                       Range rows, const float* bias, PooledPixels<T> to) {
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

// Contiguous outputs: lanes[position][kPairOutputs] to output[channel][plane], and to the record unless null.
inline void put_channels(const float* lanes, int64_t positions, int64_t channels, BFloat16* output,
                         uint8_t* record, int64_t plane) {
  for (int64_t c = 0; c < channels; c += kLanes)
    for (int64_t i = 0; i < positions; i += kLanes) {
      const int some = static_cast<int>(smaller(channels - c, kLanes));
      const int left = static_cast<int>(smaller(positions - i, kLanes));
      Vec rows[kLanes];
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) rows[j] = j < left ? load(lanes + (i + j) * kPairOutputs + c) : zero();
      transpose(rows);
      for (int j = 0; j < some; ++j) {
        const int64_t at = (c + j) * plane + i;
        const VecBits bits = reinterpret_cast<VecBits>(rows[j]);
        store_pooled<BFloat16>(reinterpret_cast<Vec>(bits & 0xffff0000),
                               reinterpret_cast<VecInt>(bits & 0xff), left, output + at,
                               record == nullptr ? nullptr : record + at);
      }
    }
}
