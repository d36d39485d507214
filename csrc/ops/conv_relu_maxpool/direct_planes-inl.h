// Rows of contiguous planes, without a pool: relu(conv + bias) with vectors along the positions of a row, one
// broadcast weight a tap and channel, so that whole cache lines are stored as they are computed. Sums run
// over the taps in the order of the other tiles. Saves nothing.

constexpr int kPlaneVectors = 3;  // of positions
constexpr int kPlaneChannels =
    kBlock / 4;  // with AVX2 12 accumulators, 3 inputs, 1 broadcast of 16 registers

// The last of the V vectors has `last` positions; of the channels the first `channels` are stored.
template <class T, int V>
FASTDL_INLINE void plane_tile(const float* in, const Taps& taps, int64_t channel, const float* bias,
                              int64_t channels, int last, T* to, int64_t plane) {
  Vec acc[kPlaneChannels][V];
#pragma GCC unroll 8
  for (int k = 0; k < kPlaneChannels; ++k)
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) acc[k][v] = zero();
  const float* weight = taps.weight + channel;
#pragma GCC unroll 1
  for (int64_t t = 0; t < taps.count; ++t, weight += kBlock) {
    const float* from = in + taps.offset[t];
    Vec x[V];
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) x[v] = load(from + v * kLanes);
#pragma GCC unroll 8
    for (int k = 0; k < kPlaneChannels; ++k) {
      const Vec w = set1(weight[k]);
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) acc[k][v] = fma(x[v], w, acc[k][v]);
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < kPlaneChannels; ++k, to += plane) {
    if (k >= channels) break;
    const Vec b = set1(bias[channel + k]);
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) acc[k][v] = max(zero(), acc[k][v] + b);
#pragma GCC unroll 3
    for (int v = 0; v + 1 < V; ++v) store(to + v * kLanes, acc[k][v]);
    T* end = to + (V - 1) * kLanes;
    last == kLanes ? store(end, acc[k][V - 1]) : store_first(end, acc[k][V - 1], last);
  }
}

// V vectors of positions of the first `channels` channels of a block.
template <class T, int V>
__attribute__((noinline)) void plane_column(const float* in, const Taps& taps, const float* bias,
                                            int64_t channels, int last, T* to, int64_t plane) {
  for (int64_t k = 0; k < channels; k += kPlaneChannels)
    plane_tile<T, V>(in, taps, k, bias, channels - k, last, to + k * plane, plane);
}

template <class T, int V, class... Arguments>
FASTDL_INLINE void plane_column_of(int64_t vectors, Arguments... arguments) {
  if constexpr (V > 1)
    if (vectors < V) return plane_column_of<T, V - 1>(vectors, arguments...);
  plane_column<T, V>(arguments...);
}

FASTDL_INLINE int64_t plane_tiles(int64_t CW) {
  return ((CW + kLanes - 1) / kLanes + kPlaneVectors - 1) / kPlaneVectors;
}

// One conv row of the first `channels` channels of a block.
template <class T>
FASTDL_INLINE void plane_row(int64_t CW, const float* in, const Taps& taps, const float* bias,
                             int64_t channels, T* to, int64_t plane, Ahead* ahead) {
  const int64_t vectors = (CW + kLanes - 1) / kLanes, tiles = plane_tiles(CW);
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t begin = vectors * i / tiles, end = vectors * (i + 1) / tiles;
    const int last = static_cast<int>(smaller(CW - (end - 1) * kLanes, kLanes));
    plane_column_of<T, kPlaneVectors>(end - begin, in + begin * kLanes, taps, bias, channels, last,
                                      to + begin * kLanes, plane);
    ask(ahead);
  }
}
