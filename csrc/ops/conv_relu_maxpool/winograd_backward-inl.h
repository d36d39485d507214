// grad_input as a fused Winograd convolution of the expanded gradient with the rotated weight; grad_weight
// and grad_bias as sums over the tiles. Groups of tiles run in parallel, slices of them for the sums. Saves
// nothing.

template <class T>
FASTDL_INLINE StageFunction stage_gradient(const GradientSource& source) {
  if (source.record != nullptr) return stage_pooled_gradient<T>;
  return source.output != nullptr ? stage_unpooled_gradient<T> : stage_plain_gradient<T>;
}

template <class T>
void input_gradient(const ConvReluMaxpoolBackward& args, const GradientSource& source,
                    const ThreadPool& pool) {
  const ConvGeometry& g = args.conv;
  Convolution conv;
  conv.shape = {g.N, g.C_out, g.CH, g.CW, g.C, g.H, g.W, {2 - g.padding[0], 2 - g.padding[1]}};
  conv.source = &source;
  conv.stage = stage_gradient<T>(source);
  conv.reads = gradient_reads<T>;
  const bool channels_last = args.weight_channels_last;
  conv.weight = {args.weight, g.C, g.C_out, channels_last ? 1 : 9, 9 * g.C, channels_last ? g.C : 1, true};
  conv.packed = nullptr;
  conv.emission = Emission::kConvolution;
  conv.target = {args.grad_input, nullptr, args.x_strides, g.C, g.H, g.W, g.H, g.W, nullptr};
  plan_and_convolve<T>(conv, pool);
}

// Enough tasks for some threads, slices long enough to be worth their sums, and sums that stay in a shared
// cache. A function of the shapes alone: the sums must not depend on the number of threads.
FASTDL_INLINE int64_t slices_for(const WeightGradient& w) {
  constexpr int64_t kTasks = 16, kLeastGroups = 4, kMostBytes = 5 << 20;
  const int64_t blocks = w.c_blocks * w.k_blocks;
  const int64_t by_tasks = kTasks / blocks, by_groups = w.plan.groups() / kLeastGroups;
  const int64_t by_bytes = kMostBytes / (4 * blocks * block_sums(w) + 1);
  const int64_t shorter = by_tasks < by_groups ? by_tasks : by_groups,
                slices = shorter < by_bytes ? shorter : by_bytes;
  return slices < 1 ? 1 : slices;
}

template <class T>
void weight_gradient(const ConvReluMaxpoolBackward& args, const GradientSource& source,
                     const ThreadPool& pool) {
  const ConvGeometry& g = args.conv;
  WeightGradient w;
  w.shape = {g.N, g.C, g.H, g.W, g.C_out, g.CH, g.CW, {g.padding[0], g.padding[1]}};
  w.plan = winograd_plan(w.shape, kTile, kWeightGradientTiles, 1);
  w.x = {args.x, args.x_strides, 0};
  w.gradient = source;
  w.stage_x = stage_image<T>;
  w.stage_gradient = stage_gradient<T>(source);
  w.reads_x = image_reads<T>;
  w.reads_gradient = gradient_reads<T>;
  w.pooled = args.pool.present;
  w.wants_weight = args.grad_weight != nullptr && g.C > 0;
  w.c_blocks = w.wants_weight ? (g.C + kBlockChannels - 1) / kBlockChannels : 1;
  w.k_blocks = (g.C_out + kBlockChannels - 1) / kBlockChannels;
  w.slices = slices_for(w);

  const int64_t all_k = padded(g.C_out), threads = pool.size();
  const int64_t blocks = w.c_blocks * w.k_blocks;
  const int64_t sums = w.wants_weight ? w.slices * blocks * block_sums(w) : 0;
  const int64_t direct_taps = kBlockChannels * 9 * kLanes;
  const int64_t worker_floats = weight_gradient_scratch(w).total() + direct_taps;
  float* memory = static_cast<float*>(
      thread_scratch(4 * static_cast<size_t>(worker_floats * threads + sums + w.slices * all_k)));
  w.sums = memory + worker_floats * threads;
  w.bias_sums = w.sums + sums;
  parallel_tasks(pool, w.slices * blocks, [&](int64_t task, int64_t worker) {
    const int64_t block = task % blocks;
    weight_gradient_task(w, task / blocks, block % w.c_blocks * kBlockChannels,
                         block / w.c_blocks * kBlockChannels, memory + worker * worker_floats);
  });
  if (w.wants_weight)
    parallel_tasks(pool, all_k / kLanes, [&](int64_t task, int64_t worker) {
      float* scratch = memory + worker * worker_floats;
      finish_weight_gradient(w, task * kLanes, static_cast<T*>(args.grad_weight), scratch,
                             scratch + worker_floats - direct_taps);
    });
  if (args.grad_bias != nullptr)
    for (int64_t k = 0; k < g.C_out; ++k) {
      float sum = 0;
      for (int64_t slice = 0; slice < w.slices; ++slice) sum += w.bias_sums[slice * all_k + k];
      from_float(static_cast<T*>(args.grad_bias) + k, sum);
    }
}

template <class T>
void backward_of(const ConvReluMaxpoolBackward& args, const ThreadPool& pool) {
  const GradientSource source = {
      args.grad_output, args.record, args.output, args.grad_output_strides, args.pool.OH, args.pool.OW, 0};
  if (args.grad_input != nullptr && args.conv.N * args.conv.C * args.conv.H * args.conv.W > 0)
    input_gradient<T>(args, source, pool);
  if ((args.grad_weight != nullptr || args.grad_bias != nullptr) && args.conv.C_out > 0)
    weight_gradient<T>(args, source, pool);
}

static void backward(const ConvReluMaxpoolBackward& args, const ThreadPool& pool) {
  switch (args.dtype) {
    case DType::kFloat16:
      return backward_of<Float16>(args, pool);
    case DType::kBFloat16:
      return backward_of<BFloat16>(args, pool);
    default:
      return backward_of<float>(args, pool);
  }
}
