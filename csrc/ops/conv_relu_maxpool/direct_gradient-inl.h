// The gradient of the convolution's output under a few rows of windows, staged in L1 as staged[conv
// row][CW][kBlock]: expanded from grad_output and the record (or masked by the output), transposed to vectors
// of channels.

template <class T>
struct Gradient {
  const T *grad_output, *output;  // at the first element of the block's first channel of the image
  const uint8_t* record;          // or null, and output is not
  int64_t channel, pixel;         // strides of all three
  int64_t channels;               // of this block, at most kBlock
};

// kLanes pooled elements from `pixel` on, `left` of them real, of channels c to c + kLanes: open gradients in
// values[pixel][channel lane] and record bytes in where[..], 0 where the ReLU is closed and there is no
// record.
template <class T>
FASTDL_INLINE void fetch(const Gradient<T>& from, int64_t pixel, int left, int64_t c, Vec (&values)[kLanes],
                         VecInt (&where)[kLanes]) {
  const int channels = static_cast<int>(smaller(from.channels - c, kLanes));
  const bool rows_of_channels = from.channel == 1;
  const int rows = rows_of_channels ? left : channels, lanes = rows_of_channels ? channels : left;
  for (int i = 0; i < kLanes; ++i) {
    values[i] = zero();
    where[i] = VecInt{};
    if (i >= rows) continue;
    const int64_t at =
        pixel * from.pixel + c * from.channel + i * (rows_of_channels ? from.pixel : from.channel);
    values[i] = load_first(from.grad_output + at, lanes);
    if (from.record != nullptr)
      where[i] = load_bytes_first(from.record + at, lanes, VecInt{});
    else
      values[i] = select(at_most(load_first(from.output + at, lanes), zero()), zero(), values[i]);
  }
  if (rows_of_channels) return;
  transpose(values);
  if (from.record == nullptr) return;
  Vec bits[kLanes];
  for (int i = 0; i < kLanes; ++i) bits[i] = reinterpret_cast<Vec>(where[i]);
  transpose(bits);
  for (int i = 0; i < kLanes; ++i) where[i] = reinterpret_cast<VecInt>(bits[i]);
}

// Output rows `rows` of one block into staged[conv.begin ...]; adds the open gradients to bias[kBlock].
template <class T>
void stage_gradient(const Gradient<T>& from, const ConvGeometry& g, const PoolGeometry& p, Range rows,
                    Range conv, float* staged, float* bias) {
  if (p.present)
    std::memset(staged, 0, static_cast<size_t>((conv.end - conv.begin) * g.CW * kBlock) * sizeof(float));
  for (int64_t c = 0; c < from.channels; c += kLanes) {
    Vec sum = load(bias + c);
    for (int64_t oh = rows.begin; oh < rows.end; ++oh)
      for (int64_t ow = 0; ow < p.OW; ow += kLanes) {
        const int left = static_cast<int>(smaller(p.OW - ow, kLanes));
        Vec values[kLanes];
        VecInt where[kLanes];
        fetch(from, oh * p.OW + ow, left, c, values, where);
        for (int i = 0; i < left; ++i) {
          if (!p.present) {
            sum += values[i];
            store(staged + ((oh - conv.begin) * g.CW + ow + i) * kBlock + c, values[i]);
            continue;
          }
          const int64_t h = oh * p.stride[0] - p.padding[0], w = (ow + i) * p.stride[1] - p.padding[1];
          const Range kh = taps_inside(h, p.dilation[0], p.size[0], g.CH);
          const Range kw = taps_inside(w, p.dilation[1], p.size[1], g.CW);
          for (int64_t y = kh.begin; y < kh.end; ++y)
            for (int64_t x = kw.begin; x < kw.end; ++x) {
              float* to =
                  staged + ((h + y * p.dilation[0] - conv.begin) * g.CW + w + x * p.dilation[1]) * kBlock + c;
              const Vec open =
                  select(where[i] == VecInt{} + static_cast<int>(y * p.size[1] + x), values[i], zero());
              store(to, load(to) + open);
              sum += open;
            }
        }
      }
    store(bias + c, sum);
  }
}
