// A register block of the direct convolution: neighbouring positions times one or two vectors of output
// channels, one broadcast input and kVectors weight vectors a tap.

// 28 accumulators, 2 weights and 1 broadcast of 32 registers, or 12 accumulators of 16.
constexpr int kTileColumns = kRegisters == 32 ? 14 : 6;
constexpr int kTileWindows = kRegisters == 32 ? 3 : 1;  // 2 x 6 positions, or 2 x 2

struct Taps {
  const int32_t* offset;  // [count]
  const float* weight;    // [count][kBlock]
  int64_t count;
};

// acc[i][v] += the taps at in[i]: the caller's loop is unrolled into registers.
template <int kRows, int kColumns, int V>
FASTDL_INLINE void accumulate(const float* in, int64_t next_row, const Taps& taps,
                              Vec (&acc)[kRows * kColumns][V]) {
#pragma GCC unroll 32
  for (int i = 0; i < kRows * kColumns; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) acc[i][v] = zero();
  const float* weight = taps.weight;
#pragma GCC unroll 1
  for (int64_t t = 0; t < taps.count; ++t, weight += kBlock) {
    const float* from = in + taps.offset[t];
    Vec w[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) w[v] = load(weight + v * kLanes);
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 14
      for (int i = 0; i < kColumns; ++i) {
        const Vec x = set1(from[i]);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) acc[r * kColumns + i][v] = fma(x, w[v], acc[r * kColumns + i][v]);
      }
      from += next_row;
    }
  }
}

// `kColumns` positions of one row. With bias: relu(conv + bias); without: conv itself. A function of its own,
// as the next one: inlined together they spill.
template <int kColumns, int V>
__attribute__((noinline)) void row_tile(const float* in, const Taps& taps, const float* bias, float* to,
                                        int64_t pitch) {
  Vec acc[kColumns][V];
  accumulate<1, kColumns, V>(in, 0, taps, acc);
  if (bias != nullptr) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const Vec b = load(bias + v * kLanes);
#pragma GCC unroll 14
      for (int i = 0; i < kColumns; ++i) acc[i][v] = max(zero(), acc[i][v] + b);
    }
  }
#pragma GCC unroll 14
  for (int i = 0; i < kColumns; ++i, to += pitch)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(to + v * kLanes, acc[i][v]);
}

// 2x2 windows side by side: relu(max + bias) and the record.
template <int kWindows, int V>
__attribute__((noinline)) void pooled_tile(const float* in, int64_t next_row, const Taps& taps,
                                           const float* bias, float largest_closed, float* to, int64_t pitch,
                                           uint8_t* record, int64_t record_pitch) {
  Vec acc[4 * kWindows][V];
  accumulate<2, 2 * kWindows, V>(in, next_row, taps, acc);
#pragma GCC unroll 3
  for (int i = 0; i < kWindows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const Vec &first = acc[2 * i][v], &second = acc[2 * i + 1][v], &third = acc[2 * kWindows + 2 * i][v],
                &fourth = acc[2 * kWindows + 2 * i + 1][v];
      Vec best = first;
      VecInt where = {};
      if (record == nullptr) {
        best = max_of_4(first, second, third, fourth);
      } else {
        keep_max(best, where, second, VecInt{} + 1);
        keep_max(best, where, third, VecInt{} + 2);
        keep_max(best, where, fourth, VecInt{} + 3);
      }
      bias_relu(best, where, load(bias + v * kLanes), set1(largest_closed));
      store(to + i * pitch + v * kLanes, best);
      if (record != nullptr) store_bytes(record + i * record_pitch + v * kLanes, where);
    }
}

// The tile of `columns` <= kColumns positions, or `windows` <= kWindows windows.
template <int kColumns, int V, class... Arguments>
FASTDL_INLINE void row_tile_of(int64_t columns, Arguments... arguments) {
  if constexpr (kColumns > 1)
    if (columns < kColumns) return row_tile_of<kColumns - 1, V>(columns, arguments...);
  row_tile<kColumns, V>(arguments...);
}
template <int kWindows, int V, class... Arguments>
FASTDL_INLINE void pooled_tile_of(int64_t windows, Arguments... arguments) {
  if constexpr (kWindows > 1)
    if (windows < kWindows) return pooled_tile_of<kWindows - 1, V>(windows, arguments...);
  pooled_tile<kWindows, V>(arguments...);
}
