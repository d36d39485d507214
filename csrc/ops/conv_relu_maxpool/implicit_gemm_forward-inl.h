// relu(max_pool2d(conv2d(x, weight)) + bias) as matrix products of planes, fp32. A task is a group of
// output rows of one image and a share of the channels; its convolution stays in cache and is pooled there.
// Saves one byte a pooled element.

struct ImplicitGemmPlan {
  PlanePlan planes;
  int64_t rows, groups, shares;  // output rows of a task; tasks along the rows, along the channels
  int64_t panels, share_panels;  // of kPanelRows channels; of a share
  int64_t pitch;                 // floats of a channel of a tile
  bool contiguous;               // of the output
  int64_t staged, right, conv, ring, values, worker;  // floats of a worker's parts and of all of them
};

// Readable floats before and after the staged rows.
constexpr int64_t kStagedSlack = 2 * kLanes;

// What a row of the pooling windows is made with, the same for all tiles.
struct PlanePool {
  bool paired;
  StagedColumns columns;
  const uint8_t* first_kw;
};

// Where a tile's pooled rows go: channels `step` apart.
struct PooledRows {
  float* output;
  uint8_t* record;  // or null
  int64_t step;
};

// Output rows `rows` of channels [channel, ...) from the tile conv[channel][pitch] of conv rows `in`.
inline void pool_tile(const ConvReluMaxpoolForward& a, const PlanePool& pool, const float* conv,
                      int64_t pitch, Range in, Range rows, Range channels, float* ring, PooledRows to) {
  const PoolGeometry& p = a.pool;
  BiasReluMaxpoolForward tile = {};
  tile.CH = in.end - in.begin, tile.CW = a.conv.CW;
  tile.pool = p;
  tile.pool.OH = rows.end - rows.begin;
  if (p.present) tile.pool.padding[0] = in.begin - (rows.begin * p.stride[0] - p.padding[0]);
  for (int64_t k = channels.begin; k < channels.end; ++k, conv += pitch, to.output += to.step) {
    const float bias = a.bias == nullptr ? 0 : static_cast<const float*>(a.bias)[k];
    if (!p.present)
      relu_plane<float>(conv, bias, tile.CH * tile.CW, to.output);
    else if (pool.paired)
      pool_plane_2x2<float>(conv, bias, tile, to.output, to.record);
    else
      pool_plane<float>(conv, bias, tile, pool.columns, ring, pool.first_kw, to.output, to.record);
    if (to.record != nullptr) to.record += to.step;
  }
}

// The same rows without a pool, after an epilogue; output and residual begin at `first`.
inline void finish_tile(const Conv2dForward& a, const float* conv, int64_t pitch, Range channels,
                        int64_t first, int64_t positions) {
  const float *scale = static_cast<const float*>(a.scale), *bias = static_cast<const float*>(a.bias);
  const float* residual = static_cast<const float*>(a.residual);
  float* output = static_cast<float*>(a.output);
  const auto finish = residual == nullptr
                          ? a.relu ? finish_channel<false, true, float> : finish_channel<false, false, float>
                      : a.relu ? finish_channel<true, true, float>
                               : finish_channel<true, false, float>;
  for (int64_t k = channels.begin; k < channels.end; ++k, conv += pitch, first += a.conv.CH * a.conv.CW)
    finish(conv, scale == nullptr ? 1 : scale[k], bias == nullptr ? 0 : bias[k],
           residual == nullptr ? nullptr : residual + first, positions, output + first);
}

// channels_last: from[channel][step] to to[position][C_out]. T: float, or ByteBits.
template <class T>
void put_positions(const T* from, int64_t step, int64_t channels, int64_t positions, T* to, int64_t C_out) {
  for (int64_t i = 0; i < positions; i += kLanes)
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t some = smaller(channels - c, kLanes), left = smaller(positions - i, kLanes);
      Vec rows[kLanes];
      for (int64_t j = 0; j < kLanes; ++j)
        rows[j] = j < some ? load_some(from + (c + j) * step + i, left) : zero();
      transpose(rows);
      for (int64_t j = 0; j < left; ++j) {
        T* at = to + (i + j) * C_out + c;
        some == kLanes ? store(at, rows[j]) : store_first(at, rows[j], static_cast<int>(some));
      }
    }
}

// How the work is cut. Sums do not depend on it.
FASTDL_INLINE void cut(const ConvReluMaxpoolForward& a, int64_t threads, ImplicitGemmPlan* plan) {
  const ConvGeometry& g = a.conv;
  const PoolGeometry& p = a.pool;
  const int64_t step = p.present ? p.stride[0] : 1,
                span = p.present ? (p.size[0] - 1) * p.dilation[0] + 1 : 1;
  const auto conv_rows = [&](int64_t rows) { return smaller((rows - 1) * step + span, g.CH); };
  // A tile of 32 K floats and the staged rows of 32 K stay in L2.
  const int64_t most = smaller(32768 / g.C_out < 64 ? 64 : 32768 / g.C_out, 1024);
  const auto staged = [&](int64_t rows) {
    return ((conv_rows(rows) - 1) * g.stride[0] + (g.KH - 1) * g.dilation[0] + 1) * plan->planes.input.row;
  };
  int64_t rows = p.OH;
  while (rows > 1 && (conv_rows(rows) * g.CW > most || (!plan->planes.pointwise && staged(rows) > 32768)))
    --rows;
  // For any number of threads alike: where a pixel lies in its panel decides which of two NaNs is kept.
  while (rows > 1 && g.N * parts_of(p.OH, rows) < 4) --rows;
  plan->groups = parts_of(p.OH, rows);
  plan->rows = rows = parts_of(p.OH, plan->groups);
  plan->groups = parts_of(p.OH, rows);
  plan->panels = parts_of(g.C_out, kPanelRows);
  const int64_t tasks = g.N * plan->groups;
  plan->shares = tasks >= threads ? 1 : smaller(plan->panels, parts_of(threads, tasks));
  plan->share_panels = parts_of(plan->panels, plan->shares);
  plan->shares = parts_of(plan->panels, plan->share_panels);
  plan->pitch = rounded_up(conv_rows(rows) * g.CW, kGemmWidth);
  plan->staged = plan->planes.pointwise ? 0 : rounded_up(staged(rows) + 2 * kStagedSlack, 16);
  plan->right = plan->planes.block_depth * kGemmWidth;
  plan->conv = plan->share_panels * kPanelRows * plan->pitch;
  plan->values = plan->contiguous ? 0 : plan->share_panels * kPanelRows * rows * p.OW;
}

inline void implicit_gemm_task(const ConvReluMaxpoolForward& a, const Conv2dForward* epilogue,
                               const ImplicitGemmPlan& plan, const PlanePool& pool, const int32_t* offset,
                               const float* packed, int64_t task, float* scratch) {
  const ConvGeometry& g = a.conv;
  const PoolGeometry& p = a.pool;
  const int64_t share = task % plan.shares, group = task / plan.shares % plan.groups;
  const int64_t n = task / plan.shares / plan.groups;
  const Range rows = {group * plan.rows, smaller(p.OH, (group + 1) * plan.rows)};
  const Range in = conv_rows(g, p, rows);
  const Range panels = {share * plan.share_panels, smaller(plan.panels, (share + 1) * plan.share_panels)};
  const Range channels = {panels.begin * kPanelRows, smaller(g.C_out, panels.end * kPanelRows)};
  float *right = scratch, *conv = right + plan.right, *ring = conv + plan.conv;
  float* staged = ring + plan.ring + kStagedSlack;
  if (in.begin < in.end)
    multiply_plane_tile(a, plan.planes, offset, packed, static_cast<const float*>(a.x) + n * a.x_strides[0],
                        in, panels, staged, right, conv, plan.pitch);
  const int64_t positions = (rows.end - rows.begin) * p.OW, count = channels.end - channels.begin;
  const int64_t image = n * g.C_out * p.OH * p.OW;
  if (plan.contiguous) {
    const int64_t first = image + channels.begin * p.OH * p.OW + rows.begin * p.OW;
    if (epilogue != nullptr) return finish_tile(*epilogue, conv, plan.pitch, channels, first, positions);
    return pool_tile(a, pool, conv, plan.pitch, in, rows, channels, ring,
                     {static_cast<float*>(a.output) + first, a.record == nullptr ? nullptr : a.record + first,
                      p.OH * p.OW});
  }
  float* values = staged + plan.staged - kStagedSlack;
  uint8_t* bytes = a.record == nullptr ? nullptr : reinterpret_cast<uint8_t*>(values + plan.values);
  pool_tile(a, pool, conv, plan.pitch, in, rows, channels, ring, {values, bytes, positions});
  const int64_t first = image + rows.begin * p.OW * g.C_out + channels.begin;
  put_positions(values, positions, count, positions, static_cast<float*>(a.output) + first, g.C_out);
  if (bytes != nullptr)
    put_positions(reinterpret_cast<const ByteBits*>(bytes), positions, count, positions,
                  reinterpret_cast<ByteBits*>(a.record + first), g.C_out);
}

// `epilogue`: of a convolution without a pool, or null: a ReLU.
inline void implicit_gemm(const ConvReluMaxpoolForward& a, const Conv2dForward* epilogue,
                          const ThreadPool& threads) {
  const ConvGeometry& g = a.conv;
  const PoolGeometry& p = a.pool;
  if (g.N * g.C_out * p.OH * p.OW == 0) return;
  ImplicitGemmPlan plan = {};
  plan.planes = plane_plan(g, a.x_strides);
  const ThreadPool& workers =
      g.N * g.C_out * g.CH * g.CW * g.C * plan.planes.taps < kSerialWork ? kSerial : threads;
  plan.contiguous = is_contiguous(g.C_out, p.OH, p.OW, a.output_strides);
  cut(a, workers.size(), &plan);
  PlanePool pool = {};
  pool.paired = p.present && is_2x2_stride_2(p) && 2 * p.OH <= g.CH && 2 * p.OW <= g.CW;
  const bool ring = p.present && !pool.paired;
  int64_t columns = 0;
  if (ring) {
    stage_columns(p, kLanes, &pool.columns);
    plan.ring = rounded_up(pool.columns.span * pool.columns.slots * pool.columns.length, 16);
    columns = rounded_up(p.OW, kLanes);
  }
  // the record takes a quarter of the values
  plan.worker = rounded_up(plan.right + plan.conv + plan.ring + plan.staged + 2 * plan.values, 16);

  const int64_t depth = plan.planes.staged_geometry.C * plan.planes.taps;
  const int64_t offsets = rounded_up(depth, 16), firsts = rounded_up(columns / 4 + 16, 16);
  const int64_t packed = plan.planes.blocks * plan.panels * plan.planes.block_depth * kPanelRows;
  float* scratch = static_cast<float*>(thread_scratch(
      static_cast<size_t>(offsets + firsts + rounded_up(packed, 16) + workers.size() * plan.worker) *
      sizeof(float)));
  int32_t* offset = reinterpret_cast<int32_t*>(scratch);
  uint8_t* first_kw = reinterpret_cast<uint8_t*>(scratch + offsets);
  float *weight = scratch + offsets + firsts, *own = weight + rounded_up(packed, 16);
  stage_offsets(plan.planes.staged_geometry, plan.planes.input, offset);
  for (int64_t ow = 0; ow < columns; ++ow)
    first_kw[ow] = static_cast<uint8_t>(
        taps_inside(ow * p.stride[1] - p.padding[1], p.dilation[1], p.size[1], g.CW).begin);
  pool.first_kw = first_kw;
  for (int64_t worker = 0; worker < (ring ? workers.size() : 0); ++worker) {
    // Padding columns are never staged over.
    float* to = own + worker * plan.worker + plan.right + plan.conv;
    for (int64_t i = 0; i < plan.ring; ++i) to[i] = -__builtin_inff();
  }
  parallel_tasks(workers, plan.panels, [&](int64_t panel, int64_t) {
    pack_plane_weight(static_cast<const float*>(a.weight), g, plan.planes, panel, plan.panels, weight);
  });
  parallel_tasks(workers, g.N * plan.groups * plan.shares, [&](int64_t task, int64_t worker) {
    implicit_gemm_task(a, epilogue, plan, pool, offset, weight, task, own + worker * plan.worker);
  });
}
