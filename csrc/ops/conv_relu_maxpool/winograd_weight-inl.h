// Packs a 3x3 weight for the products: U = G g G^T as panels of output channels.
// A task is a range of input channels of one panel. Saves nothing.

// The weight of a convolution C -> K: element (k, c, i, j) is tap 3 i + j, or, where `rotated` (the gradient
// of the input), tap 8 - (3 i + j).
struct PlainWeight {
  const void* data;
  int64_t K, C, k_stride, c_stride, tap_stride;
  bool rotated;
};

// g[tap] = the weight of output channels k .. k + kLanes - 1 and input channel c; channels past K are 0.
template <class T>
FASTDL_INLINE void load_taps(const PlainWeight& weight, int64_t k, int64_t c, Vec (&g)[9]) {
  const T* w = static_cast<const T*>(weight.data) + k * weight.k_stride + c * weight.c_stride;
  const int64_t channels = weight.K - k < kLanes ? weight.K - k : kLanes;
  if (weight.tap_stride != 1) {
    for (int tap = 0; tap < 9; ++tap, w += weight.tap_stride) {
      Vec& to = g[weight.rotated ? 8 - tap : tap];
      if (weight.k_stride == 1 && channels == kLanes) {
        to = load(w);
        continue;
      }
      float lanes[kLanes] = {};
      for (int64_t i = 0; i < channels; ++i) lanes[i] = to_float(w[i * weight.k_stride]);
      to = load(lanes);
    }
    return;
  }
#pragma GCC unroll 3
  for (int tap = 0; tap < 9; tap += kLanes) {
    const int count = 9 - tap < kLanes ? 9 - tap : kLanes;
    Vec rows[kLanes];
    for (int i = 0; i < kLanes; ++i)
      rows[i] = i < channels ? load_first(w + i * weight.k_stride + tap, count) : zero();
    transpose(rows);
    for (int j = 0; j < count; ++j) g[weight.rotated ? 8 - tap - j : tap + j] = rows[j];
  }
}

// The reverse for a contiguous gradient: the first `channels` lanes of taps[tap] to out[lane * stride + tap].
template <class T>
FASTDL_INLINE void store_taps(const Vec (&taps)[9], int64_t channels, T* out, int64_t stride) {
#pragma GCC unroll 3
  for (int tap = 0; tap < 9; tap += kLanes) {
    const int count = 9 - tap < kLanes ? 9 - tap : kLanes;
    Vec rows[kLanes];
    for (int j = 0; j < kLanes; ++j) rows[j] = j < count ? taps[tap + j] : zero();
    transpose(rows);
    for (int i = 0; i < channels; ++i) store_first(out + i * stride + tap, rows[i], count);
  }
}

using TransformWeight = void (*)(const Vec (&g)[9], float* u, int64_t stride);

template <class T>
void pack_weight(const PlainWeight& weight, TransformWeight transform, int64_t positions, int64_t first_vec,
                 int64_t c_begin, int64_t c_end, float* u) {
  const int64_t all = (weight.K + kLanes - 1) / kLanes;
  const int64_t vecs = all - first_vec < kGemmVecs ? all - first_vec : kGemmVecs;
  float* panel = u + packed_panel(first_vec, weight.C, positions);
  for (int64_t c = c_begin; c < c_end; ++c)
    for (int64_t j = 0; j < vecs; ++j) {
      Vec g[9];
      load_taps<T>(weight, (first_vec + j) * kLanes, c, g);
      transform(g, panel + (c * vecs + j) * kLanes, weight_stride(weight.C, vecs * kLanes));
    }
}
