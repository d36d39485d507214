// A fused convolution: groups of tiles are staged, transformed, multiplied, emitted and stored one after
// another in cache. A task is a group of tiles and a range of output channels. Saves what the emission saves.

// What a convolution does by the size of its tiles.
struct TileKernels {
  int64_t positions;
  void (*transform)(const float* staged, const WinogradGroup& group, const StagedSize& size, float* v);
  TransformWeight transform_weight;
  EmitGroup emit[4];  // by Emission
};
template <class Tile>
constexpr TileKernels kTileKernels = {
    Tile::kPositions,
    transform_tiles<input_transform<Tile>>,
    weight_transform<Tile>,
    {emit_group<Tile, Emission::kConvolution>, emit_group<Tile, Emission::kRelu>,
     emit_group<Tile, Emission::kPool>, emit_group<Tile, Emission::kPoolWithRecord>}};
FASTDL_INLINE const TileKernels& tile_kernels(int64_t tile) {
  return tile == Tile6::kTile ? kTileKernels<Tile6> : kTileKernels<Tile4>;
}

struct Convolution {
  WinogradShape shape;
  WinogradPlan plan;
  int64_t run;            // groups of a task
  int64_t channel_parts;  // tasks that share a run of groups
  const void* source;
  StageFunction stage;
  ReadsFunction reads;
  const float* packed;  // or null: packed by plan_and_convolve
  PlainWeight weight;
  OutputTarget target;
  Emission emission;
};

// Floats of scratch memory of one worker.
struct GroupScratch {
  int64_t staged, v, m, out, record;
  int64_t total() const { return staged + v + m + out + record; }
};
FASTDL_INLINE GroupScratch group_scratch(const WinogradPlan& plan, int64_t C, int64_t K, Emission emission) {
  const StagedSize size = staged_size(plan, C, 2);
  const int64_t all_vecs = (K + kLanes - 1) / kLanes, vecs = all_vecs < kPassVecs ? all_vecs : kPassVecs;
  const int64_t side = emitted_side(emission, plan.tile), positions = tile_kernels(plan.tile).positions;
  GroupScratch scratch;
  scratch.staged = 2 * plan.images * size.image();
  scratch.v = positions * position_stride(plan.tiles(), size.channels);
  scratch.m = plan.tiles() * tile_stride(positions) * vecs;
  scratch.out = plan.tiles() * side * side * kLanes;
  scratch.record = emission == Emission::kPoolWithRecord ? scratch.out : 0;
  return scratch;
}

template <class T>
void convolve_group(const Convolution& conv, const WinogradGroup& group, const Reads& next, int64_t first_vec,
                    int64_t last_vec, float* memory) {
  const GroupScratch scratch = group_scratch(conv.plan, conv.shape.C, conv.shape.K, conv.emission);
  float* staged = memory;
  float* v = staged + scratch.staged;
  float* m = v + scratch.v;
  float* out = m + scratch.m;
  float* record = out + scratch.out;
  const int64_t tiles = group.tiles();
  const StagedSize size = staged_size(group, conv.shape.C, 2);
  const int64_t side = emitted_side(conv.emission, group.tile);
  const TileKernels& kernels = tile_kernels(group.tile);
  const EmitGroup emit = kernels.emit[static_cast<int>(conv.emission)];
  const DirectTile direct = {conv.weight, conv.shape, direct_tile<T>};

  conv.stage(conv.source, conv.shape, group, size, staged);
  kernels.transform(staged, group, size, v);
  for (int64_t pass = first_vec; pass < last_vec; pass += kPassVecs) {
    const int64_t vecs = last_vec - pass < kPassVecs ? last_vec - pass : kPassVecs;
    multiply(v, conv.packed, m, kernels.positions, tiles, conv.shape.C, size.channels, pass, vecs,
             pass + kPassVecs < last_vec ? Reads{} : next,
             stored_footprint<T>(conv.target, group, side, pass, vecs));
    for (int64_t j = 0; j < vecs; ++j) {
      const int64_t k = (pass + j) * kLanes;
      const int64_t channels = conv.shape.K - k < kLanes ? conv.shape.K - k : kLanes;
      emit(m + j * tiles * tile_stride(kernels.positions), staged, group, conv.target, direct, k, out,
           record);
      if (conv.target.residual != nullptr)
        store_group<true, T>(out, group, side, k, channels, conv.target.data, conv.target);
      else
        store_group<false, T>(out, group, side, k, channels, conv.target.data, conv.target);
      if (conv.emission == Emission::kPoolWithRecord)
        store_group<false, ByteBits>(record, group, side, k, channels, conv.target.record, conv.target);
    }
  }
}

template <class T>
void convolve(const Convolution& conv, float* memory, const ThreadPool& pool) {
  const int64_t worker_floats = group_scratch(conv.plan, conv.shape.C, conv.shape.K, conv.emission).total();
  const int64_t vecs = (conv.shape.K + kLanes - 1) / kLanes;
  const int64_t part_vecs =
      ((vecs + conv.channel_parts - 1) / conv.channel_parts + kPassVecs - 1) / kPassVecs * kPassVecs;
  const int64_t groups = conv.plan.groups(), runs = (groups + conv.run - 1) / conv.run;
  parallel_tasks(pool, runs * conv.channel_parts, [&](int64_t task, int64_t worker) {
    const int64_t first = task % conv.channel_parts * part_vecs;
    const int64_t last = first + part_vecs < vecs ? first + part_vecs : vecs;
    if (first >= last) return;
    const int64_t begin = task / conv.channel_parts * conv.run,
                  end = begin + conv.run < groups ? begin + conv.run : groups;
    for (int64_t index = begin; index < end; ++index) {
      Reads next = {};
      if (index + 1 < end)
        next = conv.reads(conv.source, conv.shape, conv.plan.group(conv.shape.N, index + 1));
      convolve_group<T>(conv, conv.plan.group(conv.shape.N, index), next, first, last,
                        memory + worker * worker_floats);
    }
  });
}

static int64_t packed_floats(int64_t K, int64_t C, int64_t tile) {
  const int64_t panels = (padded(K) + kGemmWidth - 1) / kGemmWidth;
  return tile_kernels(tile).positions * (padded(K) * C + panels * kStridePadding);
}

template <class T>
void pack_weights(const PlainWeight& weight, int64_t tile, float* u, const ThreadPool& pool) {
  const TileKernels& kernels = tile_kernels(tile);
  const int64_t vecs = (weight.K + kLanes - 1) / kLanes, panels = (vecs + kGemmVecs - 1) / kGemmVecs;
  constexpr int64_t kChannels = 32;  // 64 x 32 weights take about 8 us
  const int64_t parts = (weight.C + kChannels - 1) / kChannels;
  parallel_tasks(pool, panels * parts, [&](int64_t task, int64_t) {
    const int64_t c = task % parts * kChannels;
    pack_weight<T>(weight, kernels.transform_weight, kernels.positions, task / parts * kGemmVecs, c,
                   c + kChannels < weight.C ? c + kChannels : weight.C, u);
  });
}

// Tiles of a group such that V and M of one pass stay in half of a 1 MB L2.
FASTDL_INLINE int64_t tiles_for(int64_t C, int64_t K, int64_t positions) {
  const int64_t channels = (C + kLanes - 1) / kLanes * kLanes;
  const int64_t width = K < kPassVecs * kLanes ? K : kPassVecs * kLanes;
  const int64_t fitting = kGroupBytes / (4 * positions * (channels + width));
  return fitting < 24 ? 24 : fitting > 96 ? 96 : fitting;
}

// Plans and runs a convolution, packing its weight unless that was done. Its output is not empty.
template <class T>
void plan_and_convolve(Convolution& conv, const ThreadPool& pool) {
  const WinogradShape& shape = conv.shape;
  const int64_t threads = pool.size();
  const int64_t tile = winograd_tile(shape);
  conv.plan = winograd_plan(shape, tile, tiles_for(shape.C, shape.K, tile_kernels(tile).positions),
                            threads > 1 ? 2 * threads : 1);
  conv.channel_parts =
      conv.plan.groups() < threads ? (threads + conv.plan.groups() - 1) / conv.plan.groups() : 1;
  // Runs let a worker ask for its next group early; eight or more to each thread keep the threads even.
  const int64_t even_run = conv.plan.groups() / (8 * threads);
  conv.run = even_run < 1 ? 1 : even_run > 16 ? 16 : even_run;
  const int64_t channels = padded(shape.K), packed = conv.packed ? 0 : packed_floats(shape.K, shape.C, tile);
  const int64_t workers = group_scratch(conv.plan, shape.C, shape.K, conv.emission).total() * threads;
  float* memory =
      static_cast<float*>(thread_scratch(4 * static_cast<size_t>(2 * channels + packed + workers)));
  float* u = memory + workers;
  float *bias = u + packed, *scale = bias + channels;
  const T *plain_bias = static_cast<const T*>(conv.target.plain_bias),
          *plain_scale = static_cast<const T*>(conv.target.plain_scale);
  for (int64_t k = 0; k < channels; ++k) {
    bias[k] = k < shape.K && plain_bias ? to_float(plain_bias[k]) : 0.f;
    scale[k] = k < shape.K && plain_scale ? to_float(plain_scale[k]) : 1.f;
  }
  conv.target.bias = bias, conv.target.scale = scale;
  if (conv.packed == nullptr) {
    pack_weights<T>(conv.weight, tile, u, pool);
    conv.packed = u;
  }
  convolve<T>(conv, memory, pool);
}
