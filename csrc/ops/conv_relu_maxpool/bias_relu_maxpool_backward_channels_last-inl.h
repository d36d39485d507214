// grad_conv and grad_bias from grad_output and the record (or the output), channels_last, vectors along C.
// One task is a group of rows of grad_conv of one image, and a share of its rows of windows for grad_bias.
// Each pixel gathers from the windows above it in ascending order.

// The windows over each column of grad_conv: of column w, list[begin[w]] to list[begin[w + 1] - 1].
struct Cover {
  int64_t window;
  int k;
};

FASTDL_INLINE void list_windows(const PoolGeometry& p, int axis, int64_t count, Range positions,
                                int64_t* begin, Cover* list) {
  int64_t size = 0;
  for (int64_t i = positions.begin; i < positions.end; ++i) {
    *begin++ = size;
    for (int64_t k = p.size[axis] - 1; k >= 0; --k) {
      const int64_t origin = i + p.padding[axis] - k * p.dilation[axis];
      if (origin < 0 || origin % p.stride[axis] != 0 || origin / p.stride[axis] >= count) continue;
      list[size++] = {origin / p.stride[axis], static_cast<int>(k)};
    }
  }
  *begin = size;
}

// One pixel of grad_conv, all channels. kTaps is the number of windows above it, or 0: only known at run
// time.
template <int kTaps, class T>
FASTDL_INLINE void gather_pixel(const T* grad_output, const uint8_t* record, const Tap* taps, int64_t count,
                                int64_t C, T* grad_conv) {
  using V = typename Compute<T>::V;
  using I = typename Compute<T>::I;
  constexpr int64_t lanes = sizeof(V) / sizeof(typename Compute<T>::Scalar);
  if (kTaps != 0) count = kTaps;
  for (int64_t c = 0; c < C; c += lanes) {
    // The last vector steps back over channels already written.
    if (C - c < lanes && C >= lanes) c = C - lanes;
    const int left = static_cast<int>(smaller(C - c, lanes));
    V sum = {};
#pragma GCC unroll 4
    for (int64_t t = 0; t < count; ++t) {
      const T* grad = grad_output + taps[t].offset + c;
      const uint8_t* byte = record + taps[t].offset + c;
      const I k = left == lanes ? load_bytes(byte, I{}) : load_bytes_first(byte, left, I{});
      sum += select(k == I{} + taps[t].k, left == lanes ? load(grad) : load_first(grad, left), V{});
    }
    if (left == lanes)
      store(grad_conv + c, sum);
    else
      store_first(grad_conv + c, sum, left);
  }
}

template <class T>
void gather_rows(const BiasReluMaxpoolBackward& a, int64_t n, Range rows, const int64_t* begin,
                 const Cover* columns, Tap* taps) {
  const PoolGeometry& p = a.pool;
  const int64_t image = n * p.OH * p.OW * a.C;
  int64_t row_begin[2];
  Cover row_windows[255];
  for (int64_t h = rows.begin; h < rows.end; ++h) {
    list_windows(p, 0, p.OH, {h, h + 1}, row_begin, row_windows);
    for (int64_t w = 0; w < a.CW; ++w) {
      int64_t count = 0;
      for (int64_t i = 0; i < row_begin[1]; ++i)
        for (int64_t j = begin[w]; j < begin[w + 1]; ++j)
          taps[count++] = {(row_windows[i].window * p.OW + columns[j].window) * a.C,
                           row_windows[i].k * static_cast<int>(p.size[1]) + columns[j].k};
      const T* grad_output = static_cast<const T*>(a.grad_output) + image;
      const uint8_t* record = a.record + image;
      T* grad_conv = static_cast<T*>(a.grad_conv) + ((n * a.CH + h) * a.CW + w) * a.C;
      if (count == 1)
        gather_pixel<1>(grad_output, record, taps, count, a.C, grad_conv);
      else if (count == 2)
        gather_pixel<2>(grad_output, record, taps, count, a.C, grad_conv);
      else if (count == 4)
        gather_pixel<4>(grad_output, record, taps, count, a.C, grad_conv);
      else
        gather_pixel<0>(grad_output, record, taps, count, a.C, grad_conv);
    }
  }
}

// 2x2 windows side by side, at least kLanes channels: each gradient is moved to its pixel, the others get 0.
template <class T>
void scatter_rows(const BiasReluMaxpoolBackward& a, int64_t n, Range windows) {
  const PoolGeometry& p = a.pool;
  const int64_t row = a.CW * a.C;
  for (int64_t oh = windows.begin; oh < windows.end; ++oh) {
    const T* grad_output = static_cast<const T*>(a.grad_output) + (n * p.OH + oh) * p.OW * a.C;
    const uint8_t* record = a.record + (n * p.OH + oh) * p.OW * a.C;
    T* to = static_cast<T*>(a.grad_conv) + (n * a.CH + 2 * oh) * row;
    for (int64_t ow = 0; ow < p.OW; ++ow, grad_output += a.C, record += a.C, to += 2 * a.C)
      for (int64_t c = 0; c < a.C; c += kLanes) {
        // The last vector steps back over channels already written.
        if (a.C - c < kLanes) c = a.C - kLanes;
        const VecBits grad = load_bits(grad_output + c, kLanes);
        const VecInt k = load_bytes(record + c, VecInt{});
        store_bits(to + c, select(k == 0, grad, VecBits{}));
        store_bits(to + a.C + c, select(k == 1, grad, VecBits{}));
        store_bits(to + row + c, select(k == 2, grad, VecBits{}));
        store_bits(to + row + a.C + c, select(k == 3, grad, VecBits{}));
      }
    const size_t rest = static_cast<size_t>((a.CW - 2 * p.OW) * a.C) * sizeof(T);
    std::memset(to, 0, rest);
    std::memset(to + row, 0, rest);
  }
  if (windows.end == p.OH)
    std::memset(static_cast<T*>(a.grad_conv) + (n * a.CH + 2 * p.OH) * row, 0,
                static_cast<size_t>((a.CH - 2 * p.OH) * row) * sizeof(T));
}

// Adds the open gradients of one row of windows to sums[C]: in fp32 (fp64 for fp64) along the row.
template <class T>
FASTDL_INLINE void add_open_pixels(const BiasReluMaxpoolBackward& a, int64_t pixel, double* sums) {
  using V = typename Compute<T>::V;
  using I = typename Compute<T>::I;
  constexpr int64_t lanes = sizeof(V) / sizeof(typename Compute<T>::Scalar);
  const int window = a.pool.present ? static_cast<int>(a.pool.size[0] * a.pool.size[1]) : 0;
  for (int64_t c = 0; c < a.C; c += lanes) {
    const int left = static_cast<int>(smaller(a.C - c, lanes));
    V sum = {};
    for (int64_t i = pixel * a.C + c; i < (pixel + a.pool.OW) * a.C; i += a.C) {
      const T* from = static_cast<const T*>(a.grad_output) + i;
      const V grad = left == lanes ? load(from) : load_first(from, left);
      if (a.pool.present) {
        const I k = left == lanes ? load_bytes(a.record + i, I{}) : load_bytes_first(a.record + i, left, I{});
        sum += select(k < I{} + window, grad, V{});
      } else {
        const T* value = static_cast<const T*>(a.output) + i;
        sum += select(at_most(left == lanes ? load(value) : load_first(value, left), V{}), V{}, grad);
      }
    }
    for (int i = 0; i < left; ++i) sums[c + i] += sum[i];
  }
}

template <class T>
void backward_channels_last(const BiasReluMaxpoolBackward& a, const ThreadPool& pool) {
  using Scalar = typename Compute<T>::Scalar;
  const PoolGeometry& p = a.pool;
  const bool paired = sizeof(T) < 8 && a.C >= kLanes && p.present && is_2x2_stride_2(p) && 2 * p.OH <= a.CH &&
                      2 * p.OW <= a.CW;
  const int64_t row = a.CW * a.C, group = row < kTaskElements ? kTaskElements / (row + 1) + 1 : 1;
  const int64_t groups = (a.CH + group - 1) / group, tasks = a.N * groups;
  const int64_t window = p.present ? p.size[0] * p.size[1] : 0;
  const int64_t covers = p.present ? p.OW * p.size[1] : 0;
  const int64_t sums_size = a.grad_bias != nullptr ? tasks * a.C : 0;
  double* sums =
      static_cast<double*>(thread_scratch(sums_size * sizeof(double) + (a.CW + 1) * sizeof(int64_t) +
                                          covers * sizeof(Cover) + pool.size() * window * sizeof(Tap)));
  int64_t* begin = reinterpret_cast<int64_t*>(sums + sums_size);
  Cover* columns = reinterpret_cast<Cover*>(begin + a.CW + 1);
  Tap* taps = reinterpret_cast<Tap*>(columns + covers);
  if (p.present) list_windows(p, 1, p.OW, {0, a.CW}, begin, columns);

  parallel_tasks(pool, tasks, [&](int64_t task, int64_t worker) {
    const int64_t n = task / groups, h = task % groups * group;
    const Range rows = {h, smaller(a.CH, h + group)};
    const Range windows = {p.OH * (task % groups) / groups, p.OH * (task % groups + 1) / groups};
    if (paired) {
      if constexpr (sizeof(T) < 8) scatter_rows<T>(a, n, windows);
    } else if (p.present) {
      gather_rows<T>(a, n, rows, begin, columns, taps + worker * window);
    } else {
      const int64_t from = (n * a.CH + rows.begin) * row;
      mask_plane<T>(static_cast<const T*>(a.grad_output) + from, static_cast<const T*>(a.output) + from,
                    (rows.end - rows.begin) * row, static_cast<T*>(a.grad_conv) + from);
    }
    if (a.grad_bias == nullptr) return;
    std::memset(sums + task * a.C, 0, static_cast<size_t>(a.C) * sizeof(double));
    for (int64_t oh = windows.begin; oh < windows.end; ++oh)
      add_open_pixels<T>(a, (n * p.OH + oh) * p.OW, sums + task * a.C);
  });
  if (a.grad_bias == nullptr) return;
  for (int64_t c = 0; c < a.C; ++c) {
    double sum = 0;
    for (int64_t task = 0; task < tasks; ++task) sum += sums[task * a.C + c];
    from_scalar(static_cast<T*>(a.grad_bias) + c, static_cast<Scalar>(sum));
  }
}
