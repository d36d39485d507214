// relu(max_pool2d(conv) + bias) on channels_last tensors, vectors along C.
// One task is a group of output rows of one image. Saves one byte a pooled element.

// A position of a window: elements from the window's origin, and its record byte.
struct Tap {
  int64_t offset;
  int k;
};

// One output pixel from the taps that lie inside. kTaps is their number, or 0: only known at run time.
template <int kTaps, class T>
FASTDL_INLINE void pool_pixel(const T* origin, const Tap* taps, int64_t count, const T* bias, int64_t C,
                              T* output, uint8_t* record) {
  using Scalar = typename Compute<T>::Scalar;
  using V = typename Compute<T>::V;
  using I = typename Compute<T>::I;
  constexpr int64_t lanes = sizeof(V) / sizeof(Scalar);
  if (kTaps != 0) count = kTaps;
  for (int64_t c = 0; c < C; c += lanes) {
    // The last vector steps back over channels already written; without a pool they may lie in conv itself.
    if (kTaps != 1 && C - c < lanes && C >= lanes) c = C - lanes;
    const int left = static_cast<int>(smaller(C - c, lanes));
    const auto channels = [&](const T* from) __attribute__((always_inline)) {
      return left == lanes ? load(from + c) : load_first(from + c, left);
    };
    V best = splat<V, Scalar>(-__builtin_inff());
    I where = I{} + (count > 0 ? taps[0].k : 0);
#pragma GCC unroll 9
    for (int64_t t = 0; t < count; ++t)
      keep_max(best, where, channels(origin + taps[t].offset), I{} + taps[t].k);
    bias_relu<T>(best, where, bias == nullptr ? V{} : channels(bias));
    store_pooled<T>(best, where, left, output + c, record == nullptr ? nullptr : record + c);
  }
}

template <class T>
void pool_rows(const BiasReluMaxpoolForward& a, int64_t n, Range rows, Tap* taps) {
  const PoolGeometry& p = a.pool;
  const T* bias = static_cast<const T*>(a.bias);
  for (int64_t oh = rows.begin; oh < rows.end; ++oh) {
    const int64_t h = oh * p.stride[0] - p.padding[0];
    const Range kh = taps_inside(h, p.dilation[0], p.size[0], a.CH);
    Range listed = {0, -1};
    int64_t count = 0;
    for (int64_t ow = 0; ow < p.OW; ++ow) {
      const int64_t w = ow * p.stride[1] - p.padding[1];
      const Range kw = taps_inside(w, p.dilation[1], p.size[1], a.CW);
      if (kw.begin != listed.begin || kw.end != listed.end) {
        listed = kw;
        count = 0;
        for (int64_t y = kh.begin; y < kh.end; ++y)
          for (int64_t x = kw.begin; x < kw.end; ++x)
            taps[count++] = {(y * p.dilation[0] * a.CW + x * p.dilation[1]) * a.C,
                             static_cast<int>(y * p.size[1] + x)};
      }
      const T* origin = static_cast<const T*>(a.conv) + ((n * a.CH + h) * a.CW + w) * a.C;
      const int64_t pixel = ((n * p.OH + oh) * p.OW + ow) * a.C;
      T* output = static_cast<T*>(a.output) + pixel;
      uint8_t* record = a.record == nullptr ? nullptr : a.record + pixel;
      if (count == 4)
        pool_pixel<4>(origin, taps, count, bias, a.C, output, record);
      else if (count == 9)
        pool_pixel<9>(origin, taps, count, bias, a.C, output, record);
      else
        pool_pixel<0>(origin, taps, count, bias, a.C, output, record);
    }
  }
}

template <class T>
void forward_channels_last(const BiasReluMaxpoolForward& a, const ThreadPool& pool) {
  const PoolGeometry& p = a.pool;
  const int64_t window = p.present ? p.size[0] * p.size[1] : 1;
  Tap* taps = static_cast<Tap*>(thread_scratch(pool.size() * window * sizeof(Tap)));
  const int64_t row = a.CW * a.C * (p.present ? p.stride[0] : 1);
  const int64_t group = row < kTaskElements ? kTaskElements / (row + 1) + 1 : 1;
  const int64_t groups = (p.OH + group - 1) / group;
  parallel_tasks(pool, a.N * groups, [&](int64_t task, int64_t worker) {
    const int64_t n = task / groups, oh = task % groups * group;
    const Range rows = {oh, smaller(p.OH, oh + group)};
    if (p.present) return pool_rows<T>(a, n, rows, taps + worker * window);
    const Tap tap = {0, 0};
    const int64_t begin = (n * a.CH + rows.begin) * a.CW, end = (n * a.CH + rows.end) * a.CW;
    for (int64_t pixel = begin; pixel < end; ++pixel)
      pool_pixel<1>(static_cast<const T*>(a.conv) + pixel * a.C, &tap, 1, static_cast<const T*>(a.bias), a.C,
                    static_cast<T*>(a.output) + pixel * a.C, nullptr);
  });
}
