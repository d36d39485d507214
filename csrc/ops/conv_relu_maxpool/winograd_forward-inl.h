// relu(max_pool2d(conv2d(x, weight)) + bias) as one fused Winograd convolution.
// The weight is packed by panels, then the groups of tiles run; both in parallel. Saves the record.

FASTDL_INLINE int64_t packed_floats(int64_t K, int64_t C) { return (K + kLanes - 1) / kLanes * kLanes * kPositions * C; }

template <class T>
void pack_weights(const PlainWeight& weight, float* u, const ThreadPool& pool) {
  const int64_t vecs = (weight.K + kLanes - 1) / kLanes, panels = (vecs + kGemmVecs - 1) / kGemmVecs;
  constexpr int64_t kChannels = 32;  // 64 x 32 weights take about 8 us
  const int64_t parts = (weight.C + kChannels - 1) / kChannels;
  parallel_tasks(pool, panels * parts, [&](int64_t task, int64_t) {
    const int64_t c = task % parts * kChannels;
    pack_weight<T>(weight, task / parts * kGemmVecs, c, c + kChannels < weight.C ? c + kChannels : weight.C, u);
  });
}

// Tiles of a group such that V and M of one pass stay in half of a 1 MB L2.
FASTDL_INLINE int64_t tiles_for(int64_t C, int64_t K) {
  const int64_t channels = (C + kLanes - 1) / kLanes * kLanes;
  const int64_t width = K < kPassVecs * kLanes ? K : kPassVecs * kLanes;
  const int64_t fitting = kGroupBytes / (4 * kPositions * (channels + width));
  return fitting < 24 ? 24 : fitting > 96 ? 96 : fitting;
}

template <class T>
void forward_of(const ConvReluMaxpoolForward& args, const ThreadPool& pool) {
  const ConvGeometry& g = args.conv;
  if (g.N == 0 || g.C_out == 0 || args.pool.OH == 0 || args.pool.OW == 0) return;
  const int64_t OH = args.pool.present && 2 * args.pool.OH < g.CH ? 2 * args.pool.OH : g.CH;
  const int64_t OW = args.pool.present && 2 * args.pool.OW < g.CW ? 2 * args.pool.OW : g.CW;
  Convolution conv;
  conv.shape = {g.N, g.C, g.H, g.W, g.C_out, OH, OW, {g.padding[0], g.padding[1]}};
  const int64_t threads = pool.size();
  conv.plan = winograd_plan(conv.shape, tiles_for(g.C, g.C_out), threads > 1 ? 2 * threads : 1);
  conv.channel_parts = conv.plan.groups() < threads ? (threads + conv.plan.groups() - 1) / conv.plan.groups() : 1;
  conv.emission = !args.pool.present ? Emission::kRelu : args.record ? Emission::kPoolWithRecord : Emission::kPool;
  const ImageSource source = {args.x, {args.x_strides[0], args.x_strides[1], args.x_strides[2], args.x_strides[3]}};
  conv.source = &source;
  conv.stage = [](const void* s, const WinogradShape& shape, const WinogradGroup& group, float* staged) {
    stage_image<T>(*static_cast<const ImageSource*>(s), shape, group, staged);
  };
  conv.weight = {args.weight, g.C_out, g.C, 9 * g.C, 9, false};

  const int64_t bias_floats = (g.C_out + kLanes - 1) / kLanes * kLanes, packed = packed_floats(g.C_out, g.C);
  const int64_t workers = group_scratch(conv.plan, g.C, g.C_out, conv.emission).total() * threads;
  float* memory = static_cast<float*>(thread_scratch(4 * static_cast<size_t>(bias_floats + packed + workers)));
  float* u = memory + workers;
  float* bias = u + packed;
  for (int64_t k = 0; k < bias_floats; ++k)
    bias[k] = k < g.C_out && args.bias ? to_float(static_cast<const T*>(args.bias)[k]) : 0.f;
  conv.target = {args.output, args.record, {args.output_strides[0], args.output_strides[1], args.output_strides[2], args.output_strides[3]},
                 g.C_out, args.pool.OH, args.pool.OW, g.CH, g.CW, bias};
  pack_weights<T>(conv.weight, u, pool);
  conv.packed = u;
  convolve<T>(conv, memory, pool);
}

static void forward(const ConvReluMaxpoolForward& args, const ThreadPool& pool) {
  switch (args.dtype) {
    case DType::kFloat16: return forward_of<Float16>(args, pool);
    case DType::kBFloat16: return forward_of<BFloat16>(args, pool);
    default: return forward_of<float>(args, pool);
  }
}
