// relu(max(sums) + bias) of 32 channels at a time, from the sums of an implicit GEMM of AMX tiles:
// [position][kPairOutputs] in fp32. One thread. Saves one byte a pooled element where asked.

// A position of a window: floats from the window's origin, and its record byte.
struct SumTap {
  int64_t offset;
  int k;
};

// T: bf16, or float for what is still to be transposed. `bias` holds whole vectors.
template <int kTaps, class T>
FASTDL_INLINE void pool_channels(const float* origin, const SumTap* taps, int64_t count, const float* bias,
                                 int64_t channels, T* output, uint8_t* record) {
  if (kTaps != 0) count = kTaps;
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vec best = set1(-__builtin_inff());
    VecInt where = VecInt{} + (count > 0 ? taps[0].k : 0);
    if (kTaps == 4 && record == nullptr) {
      best = max_of_4(load(origin + taps[0].offset + c), load(origin + taps[1].offset + c),
                      load(origin + taps[2].offset + c), load(origin + taps[3].offset + c));
    } else {
#pragma GCC unroll 9
      for (int64_t t = 0; t < count; ++t)
        keep_max(best, where, load(origin + taps[t].offset + c), VecInt{} + taps[t].k);
    }
    bias_relu<BFloat16>(best, where, load(bias + c));
    store_pooled<T>(best, where, channels - c, output + c, record == nullptr ? nullptr : record + c);
  }
}

template <class T>
FASTDL_INLINE void pool_window(const float* origin, const SumTap* taps, int64_t count, const float* bias,
                               int64_t channels, T* output, uint8_t* record) {
  if (count == 1)
    pool_channels<1>(origin, taps, count, bias, channels, output, record);
  else if (count == 4)
    pool_channels<4>(origin, taps, count, bias, channels, output, record);
  else
    pool_channels<0>(origin, taps, count, bias, channels, output, record);
}

// Where pooled rows go: pixels `pixel` apart, one row after the other.
template <class T>
struct PooledPixels {
  T* output;
  uint8_t* record;  // or null
  int64_t pixel, channels;
};

// Output rows `rows` from the sums of conv rows from `first_row` on, `length` positions a row.
template <class T>
inline void pool_strip(const ConvReluMaxpoolForward& a, const float* sums, int64_t first_row, int64_t length,
                       Range rows, const float* bias, PooledPixels<T> to) {
  const PoolGeometry& p = a.pool;
  const auto put = [&](const float* origin, const SumTap* taps, int64_t count) __attribute__((always_inline)) {
    pool_window(origin, taps, count, bias, to.channels, to.output, to.record);
    to.output += to.pixel;
    if (to.record != nullptr) to.record += to.pixel;
  };
  SumTap taps[256];
  if (!p.present) {
    taps[0] = {0, 0};
    for (int64_t oh = rows.begin; oh < rows.end; ++oh)
      for (int64_t ow = 0; ow < p.OW; ++ow)
        put(sums + ((oh - first_row) * length + ow) * kPairOutputs, taps, 1);
    return;
  }
  for (int64_t oh = rows.begin; oh < rows.end; ++oh) {
    const int64_t h = oh * p.stride[0] - p.padding[0];
    const Range kh = taps_inside(h, p.dilation[0], p.size[0], a.conv.CH);
    Range listed = {0, -1};
    int64_t count = 0;
    for (int64_t ow = 0; ow < p.OW; ++ow) {
      const int64_t w = ow * p.stride[1] - p.padding[1];
      const Range kw = taps_inside(w, p.dilation[1], p.size[1], a.conv.CW);
      if (kw.begin != listed.begin || kw.end != listed.end) {
        listed = kw, count = 0;
        for (int64_t y = kh.begin; y < kh.end; ++y)
          for (int64_t x = kw.begin; x < kw.end; ++x)
            taps[count++] = {(y * p.dilation[0] * length + x * p.dilation[1]) * kPairOutputs,
                             static_cast<int>(y * p.size[1] + x)};
      }
      put(sums + ((h - first_row) * length + w) * kPairOutputs, taps, count);
    }
  }
}

// Contiguous outputs: from[position][kPairOutputs] to to[channel][plane].
template <class From, class To>
inline void put_channels(const From* from, int64_t positions, int64_t channels, To* to, int64_t plane) {
  for (int64_t c = 0; c < channels; c += kLanes)
    for (int64_t i = 0; i < positions; i += kLanes) {
      const int64_t some = smaller(channels - c, kLanes), left = smaller(positions - i, kLanes);
      Vec rows[kLanes];
#pragma GCC unroll 16
      for (int64_t j = 0; j < kLanes; ++j)
        rows[j] = j < left ? load(from + (i + j) * kPairOutputs + c) : zero();
      transpose(rows);
      for (int64_t j = 0; j < some; ++j) {
        To* at = to + (c + j) * plane + i;
        left == kLanes ? store(at, rows[j]) : store_first(at, rows[j], static_cast<int>(left));
      }
    }
}
