// grad_weight and grad_bias of the direct convolution, for few input channels: the gradient of the
// convolution's output exists only in L1, a few rows at a time. One task is one of a fixed number of chunks
// of the (image, rows) units; each sums its units in order, and the chunks are added in order: the same sum
// for any number of threads.

// 18 accumulators and 9 addresses, or 12 accumulators.
constexpr int kTileTaps = kRegisters == 32 ? 9 : 6;

// to[t][kBlock] += the sum over `columns` of staged gradients times the inputs under them, taps t = 0 ..
// kTaps - 1.
template <int kTaps, int V>
__attribute__((noinline)) void weight_tile(const float* in, int64_t in_row, const int32_t* offset,
                                           const float* gradient, int64_t rows, int64_t columns, float* to) {
  Vec acc[kTaps][V];
#pragma GCC unroll 9
  for (int t = 0; t < kTaps; ++t)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) acc[t][v] = load(to + t * kBlock + v * kLanes);
  for (int64_t r = 0; r < rows; ++r, in += in_row) {
    const float* x[kTaps];
#pragma GCC unroll 9
    for (int t = 0; t < kTaps; ++t) x[t] = in + offset[t];
#pragma GCC unroll 1
    for (int64_t i = 0; i < columns; ++i, gradient += kBlock) {
      Vec grad[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) grad[v] = load(gradient + v * kLanes);
#pragma GCC unroll 9
      for (int t = 0; t < kTaps; ++t) {
        const Vec value = set1(x[t][i]);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) acc[t][v] = fma(value, grad[v], acc[t][v]);
      }
    }
  }
#pragma GCC unroll 9
  for (int t = 0; t < kTaps; ++t)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(to + t * kBlock + v * kLanes, acc[t][v]);
}

template <int kTaps, int V, class... Arguments>
FASTDL_INLINE void weight_tile_of(int64_t taps, Arguments... arguments) {
  if constexpr (kTaps > 1)
    if (taps < kTaps) return weight_tile_of<kTaps - 1, V>(taps, arguments...);
  weight_tile<kTaps, V>(arguments...);
}

struct BackwardPlan {
  StagedInput input;
  int64_t taps, blocks;
  int64_t rows, groups, units, chunks;  // output rows of a unit; units of an image, of the batch
  int64_t sums;                      // floats of a chunk: [blocks][taps + 1][kBlock], the last for grad_bias
  int64_t staged, gradient, worker;  // floats of a worker
};

FASTDL_INLINE BackwardPlan plan_backward(const ConvGeometry& g, const PoolGeometry& p) {
  BackwardPlan plan = {};
  plan.input = stage_sizes(g);
  plan.taps = g.C * g.KH * g.KW;
  plan.blocks = (g.C_out + kBlock - 1) / kBlock;
  // 128 conv positions of 32 channels are 16 KB.
  const int64_t stride = p.present ? p.stride[0] : 1, positions = g.CW * stride;
  plan.rows = smaller(p.OH, positions < 128 ? 128 / positions : 1);
  plan.groups = (p.OH + plan.rows - 1) / plan.rows;
  plan.units = g.N * plan.groups;
  plan.sums = plan.blocks * (plan.taps + 1) * kBlock;
  // 64 chunks feed as many cores; large weights get fewer, down to 8, to keep the chunks under 16 MB.
  int64_t chunks = 64;
  while (chunks > 8 && chunks * plan.sums > (4 << 20)) chunks /= 2;
  plan.chunks = smaller(plan.units, chunks);
  const int64_t span = p.present ? (p.size[0] - 1) * p.dilation[0] + 1 : 1;
  const int64_t conv_rows = smaller(g.CH, (plan.rows - 1) * stride + span);
  const int64_t in_rows = (conv_rows - 1) * g.stride[0] + (g.KH - 1) * g.dilation[0] + 1;
  plan.staged = rounded_up(in_rows * plan.input.row, 16);
  plan.gradient = conv_rows * g.CW * kBlock;
  plan.worker = plan.staged + plan.gradient;
  return plan;
}

template <class T>
void backward_unit(const ConvReluMaxpoolBackward& a, const BackwardPlan& plan, int64_t unit, float* scratch,
                   float* sums) {
  const ConvGeometry& g = a.conv;
  const PoolGeometry& p = a.pool;
  const int64_t n = unit / plan.groups, group = unit % plan.groups, plane = p.OH * p.OW;
  const Range rows = {group * plan.rows, smaller(p.OH, (group + 1) * plan.rows)},
              conv = conv_rows(g, p, rows);
  if (conv.begin >= conv.end) return;
  float *staged = scratch, *gradient = staged + plan.staged;
  stage_rows(static_cast<const T*>(a.x) + n * a.x_strides[0], a.x_strides, g, plan.input, input_rows(g, conv),
             1, staged);
  const bool contiguous = is_contiguous(g.C_out, p.OH, p.OW, a.grad_output_strides);
  for (int64_t block = 0; block < plan.blocks; ++block, sums += (plan.taps + 1) * kBlock) {
    const int64_t k = block * kBlock, first = n * g.C_out * plane + k * (contiguous ? plane : 1);
    const Gradient<T> from = {static_cast<const T*>(a.grad_output) + first,
                              p.present ? nullptr : static_cast<const T*>(a.output) + first,
                              p.present ? a.record + first : nullptr,
                              contiguous ? plane : 1,
                              contiguous ? 1 : g.C_out,
                              smaller(kBlock, g.C_out - k)};
    stage_gradient(from, g, p, rows, conv, gradient, sums + plan.taps * kBlock);
    if (a.grad_weight == nullptr) continue;
    for (int64_t t = 0; t < plan.taps; t += kTileTaps) {
      const int64_t taps = smaller(plan.taps - t, kTileTaps), in_row = g.stride[0] * plan.input.row;
      const auto tile = from.channels > kLanes
                            ? weight_tile_of<kTileTaps, 2, const float*, int64_t, const int32_t*,
                                             const float*, int64_t, int64_t, float*>
                            : weight_tile_of<kTileTaps, 1, const float*, int64_t, const int32_t*,
                                             const float*, int64_t, int64_t, float*>;
      tile(taps, staged, in_row, plan.input.offset + t, gradient, conv.end - conv.begin, g.CW,
           sums + t * kBlock);
    }
  }
}

template <class T>
void direct_backward(const ConvReluMaxpoolBackward& a, const ThreadPool& pool) {
  const ConvGeometry& g = a.conv;
  BackwardPlan plan = plan_backward(g, a.pool);
  const int64_t table = rounded_up(plan.taps, 16);
  float* scratch = static_cast<float*>(thread_scratch(
      static_cast<size_t>(table + plan.chunks * plan.sums + pool.size() * plan.worker) * sizeof(float)));
  stage_offsets(g, plan.input, reinterpret_cast<int32_t*>(scratch));
  plan.input.offset = reinterpret_cast<int32_t*>(scratch);
  float *sums = scratch + table, *workers = sums + plan.chunks * plan.sums;
  parallel_tasks(pool, plan.chunks, [&](int64_t chunk, int64_t worker) {
    float* sum = sums + chunk * plan.sums;
    std::memset(sum, 0, static_cast<size_t>(plan.sums) * sizeof(float));
    for (int64_t unit = plan.units * chunk / plan.chunks; unit < plan.units * (chunk + 1) / plan.chunks;
         ++unit)
      backward_unit<T>(a, plan, unit, workers + worker * plan.worker, sum);
  });
  for (int64_t k = 0; k < g.C_out; ++k)
    for (int64_t t = 0; t <= plan.taps; ++t) {
      const float* at = sums + (k / kBlock * (plan.taps + 1) + t) * kBlock + k % kBlock;
      float sum = 0;
      for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) sum += at[chunk * plan.sums];
      if (t < plan.taps && a.grad_weight != nullptr)
        from_float(static_cast<T*>(a.grad_weight) + k * plan.taps + t, sum);
      if (t == plan.taps && a.grad_bias != nullptr) from_float(static_cast<T*>(a.grad_bias) + k, sum);
    }
}

inline constexpr void (*kDirectBackward[4])(const ConvReluMaxpoolBackward&, const ThreadPool&) = {
    nullptr, direct_backward<float>, direct_backward<Float16>, direct_backward<BFloat16>};
