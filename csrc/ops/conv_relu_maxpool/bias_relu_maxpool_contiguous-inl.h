// relu(max_pool2d(conv) + bias) on contiguous planes, vectors along W.
// One task is a group of whole planes. Saves one byte a pooled element; rows are staged in fp32 (fp64 for
// fp64) with -inf as padding and one slot for each phase of the stride, so that every tap is a contiguous
// load.

// Where tap kw of output column ow lies in a staged row: slot[kw] * length + ow + shift[kw].
struct StagedColumns {
  int64_t length, slots, span;  // span: rows of the ring
  int64_t phase[256];           // of a slot
  int64_t slot[256], shift[256];
};

FASTDL_INLINE void stage_columns(const PoolGeometry& p, int64_t lanes, StagedColumns* columns) {
  StagedColumns& c = *columns;
  const int64_t reach = (p.size[1] - 1) * p.dilation[1] / p.stride[1];
  c.length = (p.OW + lanes - 1) / lanes * lanes + reach;
  c.span = (p.size[0] - 1) * p.dilation[0] + 1;
  c.slots = 0;
  for (int64_t kw = 0; kw < p.size[1]; ++kw) {
    const int64_t phase = kw * p.dilation[1] % p.stride[1];
    int64_t slot = 0;
    while (slot < c.slots && c.phase[slot] != phase) ++slot;
    if (slot == c.slots) c.phase[c.slots++] = phase;
    c.slot[kw] = slot;
    c.shift[kw] = kw * p.dilation[1] / p.stride[1];
  }
}

// The columns j of a slot that hold positions j * stride + phase - padding inside [0, CW).
FASTDL_INLINE Range staged_inside(const StagedColumns& c, const PoolGeometry& p, int64_t slot, int64_t CW) {
  return taps_inside(c.phase[slot] - p.padding[1], p.stride[1], c.length, CW);
}

template <class T, class Scalar>
FASTDL_INLINE void copy_row(const T* from, int64_t count, Scalar* to) {
  constexpr int64_t lanes = sizeof(typename Compute<T>::V) / sizeof(Scalar);
  int64_t j = 0;
  for (; j + lanes <= count; j += lanes) store(to + j, load(from + j));
  if (j < count)
    store_first(to + j, load_first(from + j, static_cast<int>(count - j)), static_cast<int>(count - j));
}

FASTDL_INLINE void copy_even(const double* from, int64_t count, double* to) {
  for (int64_t j = 0; j < count; ++j) to[j] = from[2 * j];
}

template <class T>
FASTDL_INLINE void stage_row(const T* row, const StagedColumns& c, const PoolGeometry& p, int64_t CW,
                             typename Compute<T>::Scalar* staged) {
  for (int64_t slot = 0; slot < c.slots; ++slot) {
    const Range inside = staged_inside(c, p, slot, CW);
    const int64_t stride = p.stride[1];
    const T* from = row + c.phase[slot] - p.padding[1] + inside.begin * stride;
    auto* to = staged + slot * c.length + inside.begin;
    const int64_t count = inside.end - inside.begin;
    if (stride == 1)
      copy_row(from, count, to);
    else if (stride == 2)
      copy_even(from, count, to);
    else
      for (int64_t j = 0; j < count; ++j) to[j] = to_scalar(from[j * stride]);
  }
}

template <class T, class V, class I>
FASTDL_INLINE void store_pooled(V best, I where, int64_t left, T* output, uint8_t* record) {
  constexpr int64_t lanes = sizeof(V) / sizeof(typename Compute<T>::Scalar);
  if (left >= lanes) {
    store(output, best);
    if (record != nullptr) store_bytes(record, where);
  } else {
    store_first(output, best, static_cast<int>(left));
    if (record != nullptr) store_bytes_first(record, where, static_cast<int>(left));
  }
}

template <class T>
void pool_plane(const T* conv, typename Compute<T>::Scalar bias, const BiasReluMaxpoolForward& a,
                const StagedColumns& c, typename Compute<T>::Scalar* ring, const uint8_t* first_kw, T* output,
                uint8_t* record) {
  using Scalar = typename Compute<T>::Scalar;
  using V = typename Compute<T>::V;
  using I = typename Compute<T>::I;
  constexpr int64_t lanes = sizeof(V) / sizeof(Scalar);
  const PoolGeometry& p = a.pool;
  int64_t staged_rows = 0;
  for (int64_t oh = 0; oh < p.OH; ++oh) {
    const int64_t origin = oh * p.stride[0] - p.padding[0];
    const Range rows = taps_inside(origin, p.dilation[0], p.size[0], a.CH);
    const int64_t end_row = rows.begin < rows.end ? origin + (rows.end - 1) * p.dilation[0] + 1 : 0;
    if (staged_rows < origin) staged_rows = origin;
    for (; staged_rows < end_row; ++staged_rows)
      stage_row(conv + staged_rows * a.CW, c, p, a.CW, ring + staged_rows % c.span * c.slots * c.length);
    for (int64_t ow = 0; ow < p.OW; ow += lanes) {
      V best = splat<V, Scalar>(-__builtin_inff());
      I where = load_bytes(first_kw + ow, I{}) + static_cast<int>(rows.begin * p.size[1]);
      for (int64_t kh = rows.begin; kh < rows.end; ++kh) {
        const Scalar* row = ring + (origin + kh * p.dilation[0]) % c.span * c.slots * c.length + ow;
        for (int64_t kw = 0; kw < p.size[1]; ++kw)
          keep_max(best, where, load(row + c.slot[kw] * c.length + c.shift[kw]),
                   I{} + static_cast<int>(kh * p.size[1] + kw));
      }
      bias_relu<T>(best, where, splat<V, Scalar>(bias));
      store_pooled<T>(best, where, p.OW - ow, output + oh * p.OW + ow,
                      record == nullptr ? nullptr : record + oh * p.OW + ow);
    }
  }
}

// 2x2 windows side by side, straight from memory.
template <class T>
void pool_plane_2x2(const T* conv, float bias, const BiasReluMaxpoolForward& a, T* output, uint8_t* record) {
  const PoolGeometry& p = a.pool;
  const Vec bias_lanes = set1(bias);
  for (int64_t oh = 0; oh < p.OH; ++oh) {
    const T* row = conv + 2 * oh * a.CW;
    for (int64_t ow = 0; ow < p.OW; ow += kLanes) {
      // The last vector of a row steps back over columns already written.
      if (p.OW - ow < kLanes && p.OW >= kLanes) ow = p.OW - kLanes;
      const int64_t left = smaller(p.OW - ow, kLanes);
      Vec best, v[3];
      load_pairs(row + 2 * ow, static_cast<int>(left), best, v[0]);
      load_pairs(row + a.CW + 2 * ow, static_cast<int>(left), v[1], v[2]);
      VecInt where = {};
      for (int k = 0; k < 3; ++k) keep_max(best, where, v[k], VecInt{} + (k + 1));
      bias_relu<T>(best, where, bias_lanes);
      store_pooled<T>(best, where, left, output + oh * p.OW + ow,
                      record == nullptr ? nullptr : record + oh * p.OW + ow);
    }
  }
}

// No pool: output may be conv itself.
template <class T>
void relu_plane(const T* conv, typename Compute<T>::Scalar bias, int64_t size, T* output) {
  using V = typename Compute<T>::V;
  using I = typename Compute<T>::I;
  constexpr int64_t lanes = sizeof(V) / sizeof(typename Compute<T>::Scalar);
  for (int64_t i = 0; i < size; i += lanes) {
    const int64_t left = size - i;
    V v = left >= lanes ? load(conv + i) : load_first(conv + i, static_cast<int>(left));
    I closed = {};
    bias_relu<T>(v, closed, V{} + bias);
    store_pooled<T>(v, closed, left, output + i, nullptr);
  }
}

template <class T>
void forward_contiguous(const BiasReluMaxpoolForward& a, const ThreadPool& pool) {
  using Scalar = typename Compute<T>::Scalar;
  constexpr int64_t lanes = sizeof(typename Compute<T>::V) / sizeof(Scalar);
  const PoolGeometry& p = a.pool;
  const bool paired =
      p.present && sizeof(T) < 8 && is_2x2_stride_2(p) && 2 * p.OH <= a.CH && 2 * p.OW <= a.CW;
  const bool staged = p.present && !paired;
  StagedColumns columns;
  int64_t ring_size = 0, columns_padded = 0;
  if (staged) {
    stage_columns(p, lanes, &columns);
    ring_size = (columns.span * columns.slots * columns.length + 15) / 16 * 16;
    columns_padded = (p.OW + lanes - 1) / lanes * lanes;
  }
  const int64_t workers = pool.size();
  uint8_t* first_kw =
      static_cast<uint8_t*>(thread_scratch(columns_padded + 64 + workers * ring_size * sizeof(Scalar)));
  Scalar* rings = reinterpret_cast<Scalar*>(first_kw + (columns_padded + 63) / 64 * 64);
  if (staged) {
    for (int64_t ow = 0; ow < columns_padded; ++ow)
      first_kw[ow] = static_cast<uint8_t>(
          taps_inside(ow * p.stride[1] - p.padding[1], p.dilation[1], p.size[1], a.CW).begin);
    // Padding columns are never staged over.
    for (int64_t i = 0; i < workers * ring_size; ++i) rings[i] = -__builtin_inff();
  }

  const int64_t planes = a.N * a.C, conv_plane = a.CH * a.CW, output_plane = p.OH * p.OW;
  if (output_plane == 0) return;
  const int64_t group = conv_plane < kTaskElements ? kTaskElements / (conv_plane + 1) + 1 : 1;
  parallel_tasks(pool, (planes + group - 1) / group, [&](int64_t task, int64_t worker) {
    for (int64_t plane = task * group; plane < smaller(planes, (task + 1) * group); ++plane) {
      const T* conv = static_cast<const T*>(a.conv) + plane * conv_plane;
      T* output = static_cast<T*>(a.output) + plane * output_plane;
      uint8_t* record = a.record == nullptr ? nullptr : a.record + plane * output_plane;
      const Scalar bias = a.bias == nullptr ? 0 : to_scalar(static_cast<const T*>(a.bias)[plane % a.C]);
      if (!p.present) {
        relu_plane<T>(conv, bias, conv_plane, output);
      } else if (staged) {
        pool_plane<T>(conv, bias, a, columns, rings + worker * ring_size, first_kw, output, record);
      } else if constexpr (sizeof(T) < 8) {
        pool_plane_2x2<T>(conv, bias, a, output, record);
      }
    }
  });
}
