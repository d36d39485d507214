// relu(max_pool2d(conv2d(x, weight)) + bias) as matrix products of planes, fp32. A task is a group of
// output rows of one image and a share of the channels. What is pooled or transposed stays in cache until
// then, the rest is finished where it belongs.
// Saves one byte a pooled element.

struct ImplicitGemmPlan {
  PlanePlan planes;
  int64_t rows, groups, shares;  // output rows of a task; tasks along the rows, along the channels
  int64_t panels, share_panels;  // of kPanelRows channels; of a share
  int64_t pitch;                 // floats of a channel of a tile
  bool contiguous, in_place;     // of the output; whether tiles are finished there
  int64_t staged, right, left, conv, ring, values, worker;  // floats of a worker's parts and of all of them
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

// How the work is cut. Sums do not depend on it, nor does the place of a pixel in its panel, which decides
// which of two NaNs is kept, on the number of threads.
FASTDL_INLINE void cut(const ConvReluMaxpoolForward& a, int64_t threads, ImplicitGemmPlan* plan) {
  const ConvGeometry& g = a.conv;
  const PoolGeometry& p = a.pool;
  const int64_t step = p.present ? p.stride[0] : 1,
                span = p.present ? (p.size[0] - 1) * p.dilation[0] + 1 : 1;
  const auto conv_rows = [&](int64_t rows) { return smaller((rows - 1) * step + span, g.CH); };
  // A tile of 32 K floats, where there is one, and the staged rows of 32 K stay in L2 beside packed pixels.
  const int64_t tile = smaller(32768 / g.C_out < 64 ? 64 : 32768 / g.C_out, 1024);
  const int64_t most = plan->in_place ? plan->planes.pixels : smaller(tile, plan->planes.pixels);
  const auto staged = [&](int64_t rows) {
    if (plan->planes.pointwise) return int64_t{0};
    if (plan->planes.strided) return conv_rows(rows) * g.CW + plan->planes.input.length;
    const int64_t stage_rows =
        g.KH == 1 ? conv_rows(rows) : (conv_rows(rows) - 1) * g.stride[0] + (g.KH - 1) * g.dilation[0] + 1;
    return stage_rows * plan->planes.input.row;
  };
  // Rows whose vectors are full, in groups that a few threads share evenly.
  constexpr int64_t kEven = 4, kGroupCost = 2;
  int64_t least = INT64_MAX;
  for (int64_t rows = 1; rows <= p.OH; ++rows) {
    if (rows > 1 && (conv_rows(rows) * g.CW > most || staged(rows) > 32768)) break;
    const int64_t groups = parts_of(p.OH, rows), tasks = g.N * groups;
    const int64_t cost = (tasks < kEven ? tasks : rounded_up(tasks, kEven)) *
                         (parts_of(conv_rows(rows) * g.CW, kLanes) + kGroupCost);
    if (cost <= least) least = cost, plan->rows = rows, plan->groups = groups;
  }
  const int64_t rows = plan->rows;
  plan->panels = parts_of(g.C_out, kPanelRows);
  const int64_t tasks = g.N * plan->groups;
  // Few tasks that do not come out even are cut along the channels too: every share packs the pixels for
  // itself.
  plan->shares = tasks >= 4 * threads || tasks % threads == 0 ? 1 : smaller(plan->panels, threads);
  plan->share_panels = parts_of(plan->panels, plan->shares);
  plan->shares = parts_of(plan->panels, plan->share_panels);
  plan->pitch = rounded_up(conv_rows(rows) * g.CW, kGemmWidth);
  plan->staged = rounded_up(staged(rows) + 2 * kStagedSlack, 16);
  plan->right = smaller(plan->planes.pixels, plan->pitch) / kGemmWidth * plan->planes.panel;
  plan->left = plan->planes.block_depth * kPanelRows;
  plan->conv = plan->in_place ? 0 : plan->share_panels * kPanelRows * plan->pitch;
  plan->values = plan->contiguous ? 0 : plan->share_panels * kPanelRows * rows * p.OW;
}

// `epilogue`: what follows a convolution without a pool in its place, or null.
inline void implicit_gemm_task(const ConvReluMaxpoolForward& a, const Conv2dForward* epilogue,
                               const ImplicitGemmPlan& plan, const PlanePool& pool, const int32_t* offset,
                               int64_t task, float* scratch) {
  const ConvGeometry& g = a.conv;
  const PoolGeometry& p = a.pool;
  const int64_t share = task % plan.shares, group = task / plan.shares % plan.groups;
  const int64_t n = task / plan.shares / plan.groups;
  const Range rows = {group * plan.rows, smaller(p.OH, (group + 1) * plan.rows)};
  const Range in = conv_rows(g, p, rows);
  const Range panels = {share * plan.share_panels, smaller(plan.panels, (share + 1) * plan.share_panels)};
  const Range channels = {panels.begin * kPanelRows, smaller(g.C_out, panels.end * kPanelRows)};
  float *right = scratch, *left = right + plan.right, *conv = left + plan.left, *ring = conv + plan.conv;
  float* staged = ring + plan.ring + kStagedSlack;
  const int64_t plane = p.OH * p.OW, image = n * g.C_out * plane;
  const int64_t first = image + channels.begin * plane + rows.begin * p.OW;
  float* output = static_cast<float*>(a.output);
  TileFinish finish = {};
  PlaneTarget target = {conv, plan.pitch, true, nullptr, Activation::kNone};
  if (plan.in_place) {
    const auto from = [](const void* values, int64_t at) {
      return values == nullptr ? nullptr : static_cast<const float*>(values) + at;
    };
    finish = {from(epilogue->scale, channels.begin), from(epilogue->bias, channels.begin),
              from(epilogue->residual, first), lowest(epilogue->activation), highest(epilogue->activation)};
    const Activation later = is_rectified(epilogue->activation) ? Activation::kNone : epilogue->activation;
    target = {output + first, plane, false, &finish, later};
  }
  if (in.begin < in.end)
    multiply_plane_tile(a, plan.planes, offset, static_cast<const float*>(a.x) + n * a.x_strides[0], in,
                        panels, {staged, right, left}, target);
  if (plan.in_place) return;
  const int64_t positions = (rows.end - rows.begin) * p.OW, count = channels.end - channels.begin;
  if (plan.contiguous)
    return pool_tile(a, pool, conv, plan.pitch, in, rows, channels, ring,
                     {output + first, a.record == nullptr ? nullptr : a.record + first, plane});
  float* values = staged + plan.staged - kStagedSlack;
  uint8_t* bytes = a.record == nullptr ? nullptr : reinterpret_cast<uint8_t*>(values + plan.values);
  pool_tile(a, pool, conv, plan.pitch, in, rows, channels, ring, {values, bytes, positions});
  const int64_t pixel = image + rows.begin * p.OW * g.C_out + channels.begin;
  put_positions(values, positions, count, positions, output + pixel, g.C_out);
  if (bytes != nullptr)
    put_positions(reinterpret_cast<const ByteBits*>(bytes), positions, count, positions,
                  reinterpret_cast<ByteBits*>(a.record + pixel), g.C_out);
}

// `epilogue`: of a convolution without a pool, or null; a channels_last output has a bias and a ReLU alone.
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
  plan.in_place = epilogue != nullptr && plan.contiguous;
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
  plan.worker =
      rounded_up(plan.right + plan.left + plan.conv + plan.ring + plan.staged + 2 * plan.values, 16);

  const int64_t depth = plan.planes.staged_geometry.C * plan.planes.taps;
  const int64_t offsets = rounded_up(depth, 16), firsts = rounded_up(columns / 4 + 16, 16);
  float* scratch = static_cast<float*>(
      thread_scratch(static_cast<size_t>(offsets + firsts + workers.size() * plan.worker) * sizeof(float)));
  int32_t* offset = reinterpret_cast<int32_t*>(scratch);
  uint8_t* first_kw = reinterpret_cast<uint8_t*>(scratch + offsets);
  float* own = scratch + offsets + firsts;
  stage_offsets(plan.planes.staged_geometry, plan.planes.input, offset);
  for (int64_t ow = 0; ow < columns; ++ow)
    first_kw[ow] = static_cast<uint8_t>(
        taps_inside(ow * p.stride[1] - p.padding[1], p.dilation[1], p.size[1], g.CW).begin);
  pool.first_kw = first_kw;
  for (int64_t worker = 0; worker < (ring ? workers.size() : 0); ++worker) {
    // Padding columns are never staged over.
    float* to = own + worker * plan.worker + plan.right + plan.left + plan.conv;
    for (int64_t i = 0; i < plan.ring; ++i) to[i] = -__builtin_inff();
  }
  parallel_tasks(workers, g.N * plan.groups * plan.shares, [&](int64_t task, int64_t worker) {
    implicit_gemm_task(a, epilogue, plan, pool, offset, task, own + worker * plan.worker);
  });
}
