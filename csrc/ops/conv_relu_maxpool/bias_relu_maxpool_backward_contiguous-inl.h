// grad_conv and grad_bias from grad_output and the record (or the output) on contiguous planes, vectors along
// W. One task is a group of whole planes. Each row of grad_conv gathers what the windows above it name, in
// ascending order of windows; a byte that names no position of its window inside the plane adds nothing.

template <class V>
FASTDL_INLINE double sum_lanes(V v) {
  double sum = 0;
  for (unsigned i = 0; i < sizeof(V) / sizeof(v[0]); ++i) sum += v[i];
  return sum;
}

// The open gradients of `size` windows, added to `sum` lane by lane.
template <class T, class V = typename Compute<T>::V>
FASTDL_INLINE V add_open(V sum, const T* grad_output, const uint8_t* record, int64_t size, int window) {
  using I = typename Compute<T>::I;
  constexpr int64_t lanes = sizeof(V) / sizeof(typename Compute<T>::Scalar);
  for (int64_t i = 0; i < size; i += lanes) {
    const int left = static_cast<int>(smaller(size - i, lanes));
    const V grad = left == lanes ? load(grad_output + i) : load_first(grad_output + i, left);
    const I k = left == lanes ? load_bytes(record + i, I{}) : load_bytes_first(record + i, left, I{});
    sum += select(k < I{} + window, grad, V{});
  }
  return sum;
}

// Adds to a staged row (the layout of stage_row) the gradients of one row of windows that name its row kh.
template <class T>
FASTDL_INLINE void add_window_row(const T* grad_output, const uint8_t* record, const StagedColumns& c,
                                  const PoolGeometry& p, int64_t kh, typename Compute<T>::Scalar* staged) {
  using V = typename Compute<T>::V;
  using I = typename Compute<T>::I;
  constexpr int64_t lanes = sizeof(V) / sizeof(typename Compute<T>::Scalar);
  for (int64_t ow = 0; ow < p.OW; ow += lanes) {
    const int left = static_cast<int>(smaller(p.OW - ow, lanes));
    const V grad = left == lanes ? load(grad_output + ow) : load_first(grad_output + ow, left);
    const I k = left == lanes ? load_bytes(record + ow, I{}) : load_bytes_first(record + ow, left, I{});
    for (int64_t kw = p.size[1] - 1; kw >= 0; --kw) {
      auto* to = staged + c.slot[kw] * c.length + c.shift[kw] + ow;
      store(to, load(to) + select(k == I{} + static_cast<int>(kh * p.size[1] + kw), grad, V{}));
    }
  }
}

// A staged row as stored elements, in its own memory.
template <class T, class Scalar>
FASTDL_INLINE const T* narrow_row(Scalar* staged, int64_t length) {
  T* to = reinterpret_cast<T*>(staged);
  if constexpr (sizeof(T) < sizeof(Scalar)) {
    int64_t j = 0;
    for (; j + kLanes <= length; j += kLanes) store(to + j, load(staged + j));
    if (j < length)
      store_first(to + j, load_first(staged + j, static_cast<int>(length - j)), static_cast<int>(length - j));
  }
  return to;
}

template <class T>
void expand_plane(const T* grad_output, const uint8_t* record, const BiasReluMaxpoolBackward& a,
                  const StagedColumns& c, typename Compute<T>::Scalar* staged, T* grad_conv) {
  const PoolGeometry& p = a.pool;
  for (int64_t h = 0; h < a.CH; ++h) {
    T* row = grad_conv + h * a.CW;
    std::memset(row, 0, static_cast<size_t>(a.CW) * sizeof(T));
    bool named = false;
    for (int64_t kh = p.size[0] - 1; kh >= 0; --kh) {
      const int64_t origin = h + p.padding[0] - kh * p.dilation[0];
      if (origin < 0 || origin % p.stride[0] != 0 || origin / p.stride[0] >= p.OH) continue;
      if (!named) std::memset(staged, 0, static_cast<size_t>(c.slots * c.length) * sizeof(*staged));
      named = true;
      const int64_t windows = origin / p.stride[0] * p.OW;
      add_window_row<T>(grad_output + windows, record + windows, c, p, kh, staged);
    }
    if (!named) continue;
    for (int64_t slot = 0; slot < c.slots; ++slot) {
      const Range inside = staged_inside(c, p, slot, a.CW);
      T* to = row + c.phase[slot] - p.padding[1];
      const T* from = narrow_row<T>(staged + slot * c.length, c.length);
      for (int64_t j = inside.begin; j < inside.end; ++j) to[j * p.stride[1]] = from[j];
    }
  }
}

// 2x2 windows side by side: each gradient is moved, none are added.
template <class T>
void expand_plane_2x2(const T* grad_output, const uint8_t* record, const BiasReluMaxpoolBackward& a,
                      T* grad_conv) {
  const PoolGeometry& p = a.pool;
  for (int64_t oh = 0; oh < p.OH; ++oh) {
    T* row = grad_conv + 2 * oh * a.CW;
    for (int64_t ow = 0; ow < p.OW; ow += kLanes) {
      // The last vector of a row steps back over columns already written.
      if (p.OW - ow < kLanes && p.OW >= kLanes) ow = p.OW - kLanes;
      const int left = static_cast<int>(smaller(p.OW - ow, kLanes));
      const int64_t window = oh * p.OW + ow;
      const VecBits grad = load_bits(grad_output + window, left);
      const VecInt k = left == kLanes ? load_bytes(record + window, VecInt{})
                                      : load_bytes_first(record + window, left, VecInt{});
      store_bit_pairs(row + 2 * ow, left, select(k == 0, grad, VecBits{}), select(k == 1, grad, VecBits{}));
      store_bit_pairs(row + a.CW + 2 * ow, left, select(k == 2, grad, VecBits{}),
                      select(k == 3, grad, VecBits{}));
    }
    for (int64_t w = 2 * p.OW; w < a.CW; ++w) row[w] = row[a.CW + w] = T{};
  }
  std::memset(grad_conv + 2 * p.OH * a.CW, 0, static_cast<size_t>((a.CH - 2 * p.OH) * a.CW) * sizeof(T));
}

// grad_conv = grad_output where the ReLU is open; returns its sum.
template <class T>
typename Compute<T>::V mask_plane(const T* grad_output, const T* output, int64_t size, T* grad_conv) {
  using V = typename Compute<T>::V;
  constexpr int64_t lanes = sizeof(V) / sizeof(typename Compute<T>::Scalar);
  V sum = {};
  for (int64_t i = 0; i < size; i += lanes) {
    const int left = static_cast<int>(smaller(size - i, lanes));
    const V value = left == lanes ? load(output + i) : load_first(output + i, left);
    const V grad = left == lanes ? load(grad_output + i) : load_first(grad_output + i, left);
    const V open = select(at_most(value, V{}), V{}, grad);
    if (left == lanes)
      store(grad_conv + i, open);
    else
      store_first(grad_conv + i, open, left);
    sum += open;
  }
  return sum;
}

template <class T>
void backward_contiguous(const BiasReluMaxpoolBackward& a, const ThreadPool& pool) {
  using Scalar = typename Compute<T>::Scalar;
  using V = typename Compute<T>::V;
  constexpr int64_t lanes = sizeof(V) / sizeof(Scalar);
  const PoolGeometry& p = a.pool;
  const bool paired =
      p.present && sizeof(T) < 8 && is_2x2_stride_2(p) && 2 * p.OH <= a.CH && 2 * p.OW <= a.CW;
  StagedColumns columns;
  int64_t staged_size = 0;
  if (p.present && !paired) {
    stage_columns(p, lanes, &columns);
    staged_size = (columns.slots * columns.length + 15) / 16 * 16;
  }
  const int64_t planes = a.N * a.C, conv_plane = a.CH * a.CW, output_plane = p.OH * p.OW;
  double* sums = static_cast<double*>(thread_scratch(
      (planes + 7) / 8 * 64 + static_cast<size_t>(pool.size() * staged_size) * sizeof(Scalar)));
  Scalar* staged = reinterpret_cast<Scalar*>(sums + (planes + 7) / 8 * 8);
  const int64_t group = conv_plane < kTaskElements ? kTaskElements / (conv_plane + 1) + 1 : 1;
  parallel_tasks(pool, (planes + group - 1) / group, [&](int64_t task, int64_t worker) {
    for (int64_t plane = task * group; plane < smaller(planes, (task + 1) * group); ++plane) {
      const T* grad_output = static_cast<const T*>(a.grad_output) + plane * output_plane;
      T* grad_conv = static_cast<T*>(a.grad_conv) + plane * conv_plane;
      V sum = {};
      if (!p.present) {
        sum = mask_plane<T>(grad_output, static_cast<const T*>(a.output) + plane * output_plane, conv_plane,
                            grad_conv);
      } else {
        const uint8_t* record = a.record + plane * output_plane;
        if (!paired)
          expand_plane<T>(grad_output, record, a, columns, staged + worker * staged_size, grad_conv);
        else if constexpr (sizeof(T) < 8)
          expand_plane_2x2<T>(grad_output, record, a, grad_conv);
        if (a.grad_bias != nullptr)
          sum = add_open<T>(sum, grad_output, record, output_plane, static_cast<int>(p.size[0] * p.size[1]));
      }
      sums[plane] = sum_lanes(sum);
    }
  });
  if (a.grad_bias == nullptr) return;
  for (int64_t c = 0; c < a.C; ++c) {
    double sum = 0;
    for (int64_t n = 0; n < a.N; ++n) sum += sums[n * a.C + c];
    from_scalar(static_cast<T*>(a.grad_bias) + c, static_cast<Scalar>(sum));
  }
}
