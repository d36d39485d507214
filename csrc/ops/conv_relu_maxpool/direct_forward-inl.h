// relu(max_pool2d(conv2d(x, weight)) + bias) without a transform: fp32 sums over the taps in one fixed order,
// vectors along output channels. One task is a group of output rows of one image and a share of the blocks of
// channels. Saves one byte a pooled element.

struct DirectPlan {
  StagedInput input;
  const float *packed, *bias;  // [blocks][taps][kBlock], [blocks][kBlock]
  int64_t taps, blocks;
  float largest_closed;          // of the output's type
  bool contiguous, paired;       // of the output; 2x2 windows, in registers
  int64_t pool_stride, span;     // conv rows between windows, and of a window
  int64_t rows, groups, shares;  // output rows of a task; tasks along the rows, along the blocks
  int64_t staged, ring, values, bytes, worker;  // floats of a worker's parts and of all of them
};

// One conv row of one block: relu(conv + bias), or conv itself without bias.
template <int V>
FASTDL_INLINE void conv_row(const ConvGeometry& g, const float* in, const Taps& taps, const float* bias,
                            float* to, int64_t pitch, Ahead* ahead) {
  const int64_t tiles = (g.CW + kTileColumns - 1) / kTileColumns;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t begin = g.CW * i / tiles, end = g.CW * (i + 1) / tiles;
    row_tile_of<kTileColumns, V>(end - begin, in + begin, taps, bias, to + begin * pitch, pitch);
    ask(ahead);
    ask(ahead + 1);
  }
}

template <int V>
FASTDL_INLINE void paired_row(const PoolGeometry& p, const float* in, int64_t next_row, const Taps& taps,
                              const float* bias, float largest_closed, float* to, int64_t pitch,
                              uint8_t* record, int64_t record_pitch, Ahead* ahead) {
  const int64_t tiles = (p.OW + kTileWindows - 1) / kTileWindows;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t begin = p.OW * i / tiles, end = p.OW * (i + 1) / tiles;
    pooled_tile_of<kTileWindows, V>(
        end - begin, in + 2 * begin, next_row, taps, bias, largest_closed, to + begin * pitch, pitch,
        record == nullptr ? nullptr : record + begin * record_pitch, record_pitch);
    ask(ahead);
    ask(ahead + 1);
  }
}

// One row of windows from conv rows ring[row % span][CW][kBlock].
FASTDL_INLINE void pool_ring(const ConvGeometry& g, const PoolGeometry& p, const float* ring, int64_t span,
                             int64_t oh, const float* bias, float largest_closed, float* to,
                             uint8_t* record) {
  const int64_t h = oh * p.stride[0] - p.padding[0];
  const Range kh = taps_inside(h, p.dilation[0], p.size[0], g.CH);
  for (int64_t ow = 0; ow < p.OW; ++ow, to += kBlock, record += kBlock) {
    const int64_t w = ow * p.stride[1] - p.padding[1];
    const Range kw = taps_inside(w, p.dilation[1], p.size[1], g.CW);
    for (int v = 0; v < kBlock; v += kLanes) {
      Vec best = set1(-__builtin_inff());
      VecInt where = VecInt{} + static_cast<int>(kh.begin * p.size[1] + kw.begin);
      for (int64_t y = kh.begin; y < kh.end; ++y) {
        const float* row = ring + (h + y * p.dilation[0]) % span * g.CW * kBlock;
        for (int64_t x = kw.begin; x < kw.end; ++x)
          keep_max(best, where, load(row + (w + x * p.dilation[1]) * kBlock + v),
                   VecInt{} + static_cast<int>(y * p.size[1] + x));
      }
      bias_relu(best, where, load(bias + v), set1(largest_closed));
      store(to + v, best);
      store_bytes(record + v, where);
    }
  }
}

// Output rows [rows.begin, rows.end) of one block, into values and bytes or straight into the output.
template <int V>
void direct_block(const ConvReluMaxpoolForward& a, const DirectPlan& plan, int64_t block, Range rows,
                  const float* staged, int64_t first_row, float* ring, float* values, int64_t pitch,
                  uint8_t* bytes, int64_t byte_pitch, Ahead* ahead) {
  const ConvGeometry& g = a.conv;
  const PoolGeometry& p = a.pool;
  const Taps taps = {plan.input.offset, plan.packed + block * plan.taps * kBlock, plan.taps};
  const float* bias = plan.bias + block * kBlock;
  // The staged row where the window of conv row `row` begins.
  const auto in = [&](int64_t row) __attribute__((always_inline)) {
    return staged + (row * g.stride[0] - g.padding[0] - first_row) * plan.input.row;
  };
  int64_t computed = 0;
  for (int64_t oh = rows.begin; oh < rows.end; ++oh) {
    float* to = values + (oh - rows.begin) * p.OW * pitch;
    uint8_t* record = bytes == nullptr ? nullptr : bytes + (oh - rows.begin) * p.OW * byte_pitch;
    if (!p.present) {
      conv_row<V>(g, in(oh), taps, bias, to, pitch, ahead);
    } else if (plan.paired) {
      paired_row<V>(p, in(2 * oh), g.stride[0] * plan.input.row, taps, bias, plan.largest_closed, to, pitch,
                    record, byte_pitch, ahead);
    } else {
      const int64_t origin = oh * p.stride[0] - p.padding[0];
      const int64_t end = smaller(origin + plan.span, g.CH);
      if (computed < origin) computed = origin;
      for (; computed < end; ++computed)
        conv_row<V>(g, in(computed), taps, nullptr, ring + computed % plan.span * g.CW * kBlock, kBlock,
                    ahead);
      pool_ring(g, p, ring, plan.span, oh, bias, plan.largest_closed, to, record);
    }
  }
}

template <class T>
void direct_task(const ConvReluMaxpoolForward& a, const DirectPlan& plan, int64_t task, float* scratch) {
  const ConvGeometry& g = a.conv;
  const PoolGeometry& p = a.pool;
  const int64_t share = task % plan.shares, group = task / plan.shares % plan.groups;
  const int64_t n = task / plan.shares / plan.groups;
  const Range rows = {group * plan.rows, smaller(p.OH, (group + 1) * plan.rows)};
  float *staged = scratch, *ring = staged + plan.staged, *values = ring + plan.ring;
  uint8_t* bytes = reinterpret_cast<uint8_t*>(values + plan.values);
  const Range in = input_rows(g, conv_rows(g, p, rows));
  stage_rows(static_cast<const T*>(a.x) + n * a.x_strides[0], a.x_strides, g, plan.input, in, 1, staged);

  const int64_t positions = (rows.end - rows.begin) * p.OW, plane = p.OH * p.OW;
  const bool in_planes = plan.contiguous && !p.present;
  const int64_t tiles = (rows.end - rows.begin) * (in_planes     ? plane_tiles(g.CW)
                                                   : plan.paired ? (p.OW + kTileWindows - 1) / kTileWindows
                                                                 : (g.CW + kTileColumns - 1) / kTileColumns);
  for (int64_t block = plan.blocks * share / plan.shares; block < plan.blocks * (share + 1) / plan.shares;
       ++block) {
    const int64_t k = block * kBlock, channels = smaller(kBlock, g.C_out - k);
    const int64_t first = n * g.C_out * plane +
                          (plan.contiguous ? k * plane + rows.begin * p.OW : rows.begin * p.OW * g.C_out + k);
    T* output = static_cast<T*>(a.output) + first;
    uint8_t* record = a.record == nullptr ? nullptr : a.record + first;
    Ahead ahead[2] = {};
    if (plan.contiguous) {
      ahead[0] = look_ahead(output, plane, positions, channels, sizeof(T), tiles);
      if (record != nullptr) ahead[1] = look_ahead(record, plane, positions, channels, 1, tiles);
    }
    if (in_planes) {
      const Taps taps = {plan.input.offset, plan.packed + block * plan.taps * kBlock, plan.taps};
      for (int64_t row = rows.begin; row < rows.end; ++row)
        plane_row<T>(g.CW, staged + (row * g.stride[0] - g.padding[0] - in.begin) * plan.input.row, taps,
                     plan.bias + block * kBlock, channels, output + (row - rows.begin) * p.OW, plane, ahead);
      continue;
    }
    const auto compute = [&](float* to, int64_t pitch, uint8_t* to_bytes, int64_t byte_pitch) {
      (channels > kLanes ? direct_block<2> : direct_block<1>)(a, plan, block, rows, staged, in.begin, ring,
                                                              to, pitch, to_bytes, byte_pitch, ahead);
    };
    if constexpr (sizeof(T) == 4) {
      const bool whole = channels == kBlock && (!p.present || plan.paired);
      if (!plan.contiguous && whole) {
        compute(output, g.C_out, record, g.C_out);
        continue;
      }
    }
    compute(values, kBlock, p.present && (record != nullptr || !plan.paired) ? bytes : nullptr, kBlock);
    if (plan.contiguous) {
      put_planes(values, positions, channels, plane, output);
      if (record != nullptr) put_narrow_planes(bytes, kBlock, positions, channels, plane, record);
    } else {
      put_channels(values, bytes, positions, channels, g.C_out, output, record);
    }
  }
}

// How the work is cut. Sums do not depend on it.
FASTDL_INLINE void cut(const ConvReluMaxpoolForward& a, int64_t threads, DirectPlan* plan) {
  const ConvGeometry& g = a.conv;
  const PoolGeometry& p = a.pool;
  // 128 positions of 32 channels are 16 KB; the staged rows of 32 K floats stay in L2.
  int64_t rows = p.OW < 128 ? 128 / p.OW : 1;
  const auto staged_rows = [&](int64_t r) {
    return ((r - 1) * plan->pool_stride + plan->span - 1) * g.stride[0] + (g.KH - 1) * g.dilation[0] + 1;
  };
  while (rows > 1 && staged_rows(rows) * plan->input.row > 32768) --rows;
  while (threads > 1 && rows > 1 && a.conv.N * ((p.OH + rows - 1) / rows) * plan->blocks < 4 * threads)
    --rows;
  plan->groups = (p.OH + rows - 1) / rows;
  plan->rows = rows = (p.OH + plan->groups - 1) / plan->groups;
  plan->shares = threads == 1 ? 1 : smaller(plan->blocks, (4 * threads - 1) / (g.N * plan->groups) + 1);
  const int64_t positions = rounded_up(rows * p.OW, kLanes);
  plan->staged = rounded_up(staged_rows(rows) * plan->input.row, 16);
  plan->ring = p.present && !plan->paired ? plan->span * g.CW * kBlock : 0;
  plan->values = positions * kBlock;
  plan->bytes = p.present ? rounded_up(rows * p.OW, 4 * kLanes) * kBlock / 4 : 0;
  plan->worker = rounded_up(plan->staged + plan->ring + plan->values + plan->bytes, 16);
}

template <class T>
void direct_forward(const ConvReluMaxpoolForward& a, const ThreadPool& threads) {
  const ConvGeometry& g = a.conv;
  const PoolGeometry& p = a.pool;
  if (g.N * g.C_out * p.OH * p.OW == 0) return;
  DirectPlan plan = {};
  plan.taps = g.C * g.KH * g.KW;
  plan.blocks = (g.C_out + kBlock - 1) / kBlock;
  plan.largest_closed = LargestClosed<T>::value;
  plan.contiguous = is_contiguous(g.C_out, p.OH, p.OW, a.output_strides);
  plan.paired = p.present && is_2x2_stride_2(p) && 2 * p.OH <= g.CH && 2 * p.OW <= g.CW;
  plan.pool_stride = p.present ? p.stride[0] : 1;
  plan.span = p.present ? (p.size[0] - 1) * p.dilation[0] + 1 : 1;
  const ThreadPool& pool = g.N * g.C_out * g.CH * g.CW * plan.taps < kSerialWork ? kSerial : threads;

  const int64_t table = rounded_up(plan.taps, 16);
  const int64_t packed = plan.blocks * plan.taps * kBlock, bias = plan.blocks * kBlock;
  plan.input = stage_sizes(g);
  cut(a, pool.size(), &plan);
  float* scratch = static_cast<float*>(
      thread_scratch(static_cast<size_t>(table + packed + bias + pool.size() * plan.worker) * sizeof(float)));
  stage_offsets(g, plan.input, reinterpret_cast<int32_t*>(scratch));
  plan.input.offset = reinterpret_cast<int32_t*>(scratch);
  float *to_packed = scratch + table, *to_bias = to_packed + packed, *workers = to_bias + bias;
  plan.packed = to_packed;
  plan.bias = to_bias;
  for (int64_t k = 0; k < bias; ++k)
    to_bias[k] = a.bias != nullptr && k < g.C_out ? to_float(static_cast<const T*>(a.bias)[k]) : 0;
  parallel_tasks(pool, plan.blocks, [&](int64_t block, int64_t) {
    pack_direct_block(static_cast<const T*>(a.weight), g.C_out, plan.taps, block,
                      to_packed + block * plan.taps * kBlock);
  });
  parallel_tasks(pool, g.N * plan.groups * plan.shares, [&](int64_t task, int64_t worker) {
    direct_task<T>(a, plan, task, workers + worker * plan.worker);
  });
}

// By DType; fp64 is not served.
inline constexpr void (*kDirectForward[4])(const ConvReluMaxpoolForward&, const ThreadPool&) = {
    nullptr, direct_forward<float>, direct_forward<Float16>, direct_forward<BFloat16>};
