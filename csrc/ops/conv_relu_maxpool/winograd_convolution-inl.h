// A fused convolution: groups of tiles are staged, transformed, multiplied, emitted and stored one after another in cache.
// A task is a group of tiles and a range of output channels. Saves what the emission saves.

struct Convolution {
  WinogradShape shape;
  WinogradPlan plan;
  int64_t channel_parts;  // tasks that share a group of tiles
  const void* source;
  void (*stage)(const void* source, const WinogradShape& shape, const WinogradGroup& group, float* staged);
  const float* packed;
  PlainWeight weight;
  OutputTarget target;
  Emission emission;
  DType dtype;
};

// Floats of scratch memory of one worker.
struct GroupScratch {
  int64_t staged, v, m, out, record;
  int64_t total() const { return staged + v + m + out + record; }
};
FASTDL_INLINE GroupScratch group_scratch(const WinogradPlan& plan, int64_t C, int64_t K, Emission emission) {
  const StagedSize size = staged_size(plan.rows, plan.cols, C);
  const int64_t all_vecs = (K + kLanes - 1) / kLanes, vecs = all_vecs < kPassVecs ? all_vecs : kPassVecs;
  const int64_t side = emitted_side(emission);
  GroupScratch scratch;
  scratch.staged = plan.images * size.image();
  scratch.v = kPositions * position_stride(plan.tiles(), size.channels);
  scratch.m = plan.tiles() * kPositions * vecs * kLanes;
  scratch.out = plan.tiles() * side * side * kLanes;
  scratch.record = emission == Emission::kPoolWithRecord ? scratch.out : 0;
  return scratch;
}

template <class T>
void convolve_group(const Convolution& conv, const WinogradGroup& group, int64_t first_vec, int64_t last_vec,
                    float* memory) {
  const GroupScratch scratch = group_scratch(conv.plan, conv.shape.C, conv.shape.K, conv.emission);
  float* staged = memory;
  float* v = staged + scratch.staged;
  float* m = v + scratch.v;
  float* out = m + scratch.m;
  float* record = out + scratch.out;
  const int64_t tiles = group.tiles();
  const StagedSize size = staged_size(group.rows, group.cols, conv.shape.C);
  const DirectTile direct = {conv.weight, conv.shape, direct_tile<T>};

  conv.stage(conv.source, conv.shape, group, staged);
  transform_inputs(staged, group, size, v);
  for (int64_t pass = first_vec; pass < last_vec; pass += kPassVecs) {
    const int64_t vecs = last_vec - pass < kPassVecs ? last_vec - pass : kPassVecs;
    multiply(v, conv.packed, m, tiles, conv.shape.C, size.channels, pass, vecs);
    for (int64_t j = 0; j < vecs; ++j) {
      const int64_t k = (pass + j) * kLanes;
      const int64_t channels = conv.shape.K - k < kLanes ? conv.shape.K - k : kLanes;
      emit_group_for(conv.emission)(m + j * tiles * kPositions * kLanes, staged, group, conv.target, direct, k, out, record);
      store_group<T>(out, group, emitted_side(conv.emission), k, channels, conv.target.data, conv.target);
      if (conv.emission == Emission::kPoolWithRecord)
        store_group<ByteBits>(record, group, emitted_side(conv.emission), k, channels, conv.target.record, conv.target);
    }
  }
}

template <class T>
void convolve(const Convolution& conv, float* memory, const ThreadPool& pool) {
  const int64_t worker_floats = group_scratch(conv.plan, conv.shape.C, conv.shape.K, conv.emission).total();
  const int64_t vecs = (conv.shape.K + kLanes - 1) / kLanes;
  const int64_t part_vecs = ((vecs + conv.channel_parts - 1) / conv.channel_parts + kPassVecs - 1) / kPassVecs * kPassVecs;
  parallel_tasks(pool, conv.plan.groups() * conv.channel_parts, [&](int64_t task, int64_t worker) {
    const int64_t first = task % conv.channel_parts * part_vecs;
    const int64_t last = first + part_vecs < vecs ? first + part_vecs : vecs;
    if (first < last)
      convolve_group<T>(conv, conv.plan.group(conv.shape.N, task / conv.channel_parts), first, last,
                        memory + worker * worker_floats);
  });
}
