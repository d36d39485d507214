// grad_weight = G^T [sum over tiles of (B^T d B) (A g A^T)] G, and grad_bias = sum of the open gradients.
// A task is a slice of the groups of tiles and a block of C x K channels, with sums of its own in one piece:
// rows that two workers write in turns were fetched ahead by both, at up to twice the time. The slices are
// added in their order (winograd_weight_gradient_sum-inl.h), whatever the number of threads. Saves nothing.

constexpr int kTile = Tile4::kTile, kSide = Tile4::kSide, kPositions = Tile4::kPositions;
constexpr int64_t kBlockChannels = 64;        // 36 x 64 x 64 sums take 590 KB
constexpr int64_t kWeightGradientTiles = 24;  // V and D of 64 channels each: 442 KB

// A g
FASTDL_INLINE void gradient_line(Vec g0, Vec g1, Vec g2, Vec g3, Vec (&out)[kSide]) {
  const Vec even = g0 + g2, odd = g1 + g3, even2 = fma(set1(4), g2, g0), odd2 = fma(set1(8), g3, g1 + g1);
  out[0] = g0;
  out[1] = even + odd;
  out[2] = even - odd;
  out[3] = even2 + odd2;
  out[4] = even2 - odd2;
  out[5] = g3;
}

// d[6 i + j] = (A g A^T)[i][j]; g lies in rows of pixels, `row` and `pixel` floats apart, positions of d
// `stride` apart.
FASTDL_INLINE void gradient_transform(const float* g, int64_t row, int64_t pixel, float* d, int64_t stride) {
  Vec columns[kTile][kSide];
#pragma GCC unroll 4
  for (int j = 0; j < kTile; ++j) {
    const float* p = g + j * pixel;
    gradient_line(load(p), load(p + row), load(p + 2 * row), load(p + 3 * row), columns[j]);
  }
#pragma GCC unroll 6
  for (int i = 0; i < kSide; ++i) {
    Vec line[kSide];
    gradient_line(columns[0][i], columns[1][i], columns[2][i], columns[3][i], line);
#pragma GCC unroll 6
    for (int j = 0; j < kSide; ++j) store(d + (i * kSide + j) * stride, line[j]);
  }
}

// G^T m
FASTDL_INLINE void weight_gradient_line(const Vec (&m)[kSide], Vec (&out)[3]) {
  const Vec sum = m[1] + m[2], difference = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
  out[0] = fma(set1(0.25f), m[0], fma(set1(-1.f / 6), sum, set1(1.f / 24) * sum2));
  out[1] = fma(set1(-1.f / 6), difference, set1(1.f / 12) * difference2);
  out[2] = fma(set1(1.f / 6), sum2 - sum, m[5]);
}

struct WeightGradient {
  WinogradShape shape;  // of the forward convolution
  WinogradPlan plan;
  ImageSource x;
  GradientSource gradient;
  StageFunction stage_x, stage_gradient;
  ReadsFunction reads_x, reads_gradient;
  bool pooled;
  int64_t slices, c_blocks, k_blocks;
  bool wants_weight;
  float* sums;       // [slices][k_blocks][c_blocks][36][block of C][block of K]
  float* bias_sums;  // [slices][padded K]
};

FASTDL_INLINE int64_t block_channels(int64_t channels) {
  return channels < kBlockChannels ? padded(channels) : kBlockChannels;
}

// Floats of one block's sums.
FASTDL_INLINE int64_t block_sums(const WeightGradient& w) {
  return kPositions * block_channels(w.shape.C) * block_channels(w.shape.K);
}

// Where a slice sums input channel c and output channel k; positions are block_channels(C) *
// block_channels(K) floats apart.
FASTDL_INLINE float* sums_at(const WeightGradient& w, int64_t slice, int64_t c, int64_t k) {
  const int64_t block = (slice * w.k_blocks + k / kBlockChannels) * w.c_blocks + c / kBlockChannels;
  return w.sums + block * block_sums(w) + c % kBlockChannels * block_channels(w.shape.K) + k % kBlockChannels;
}

// The gradient of the convolution's output as an image that is staged.
FASTDL_INLINE WinogradShape gradient_shape(const WinogradShape& forward) {
  return {forward.N, forward.K, forward.OH, forward.OW, 0, 0, 0, {0, 0}};
}

// Floats of scratch memory of one worker.
struct WeightGradientScratch {
  int64_t x, gradient, v, d;
  int64_t total() const { return x + gradient + v + d; }
};
FASTDL_INLINE WeightGradientScratch weight_gradient_scratch(const WeightGradient& w) {
  const int64_t C = block_channels(w.shape.C), K = block_channels(w.shape.K), images = w.plan.images;
  const StagedSize x = staged_size(w.plan, C, 2), g = staged_size(w.plan, K, 0);
  return {images * x.image(), images * g.image() * (w.pooled ? 1 : 2),
          kPositions * position_stride(w.plan.tiles(), C), kPositions * position_stride(w.plan.tiles(), K)};
}

static void weight_gradient_task(const WeightGradient& w, int64_t slice, int64_t c, int64_t k,
                                 float* memory) {
  const WeightGradientScratch scratch = weight_gradient_scratch(w);
  float* staged_x = memory;
  float* staged_gradient = staged_x + scratch.x;
  float* v = staged_gradient + scratch.gradient;
  float* d = v + scratch.v;
  const int64_t row = block_channels(w.shape.K), position = block_channels(w.shape.C) * row;
  WinogradShape in = w.shape, out = gradient_shape(w.shape);
  in.C = w.shape.C - c < kBlockChannels ? w.shape.C - c : kBlockChannels;
  out.C = w.shape.K - k < kBlockChannels ? w.shape.K - k : kBlockChannels;
  ImageSource x = w.x;
  GradientSource gradient = w.gradient;
  x.first_channel = c;
  gradient.first_channel = k;
  float* sums = sums_at(w, slice, c, k);
  float* bias_sums = w.bias_sums + slice * padded(w.shape.K) + k;
  const int64_t channels = padded(out.C), groups = w.plan.groups();
  if (c == 0) zero_floats(bias_sums, channels);
  if (w.wants_weight)
    for (int64_t p = 0; p < kPositions; ++p)
      for (int64_t i = 0; i < in.C; ++i) zero_floats(sums + p * position + i * row, channels);

  const int64_t end = groups * (slice + 1) / w.slices;
  for (int64_t index = groups * slice / w.slices; index < end; ++index) {
    const WinogradGroup group = w.plan.group(w.shape.N, index);
    const StagedSize in_size = staged_size(group, in.C, 2);
    const StagedSize out_size = staged_size(group, out.C, 0);
    w.stage_gradient(&gradient, out, group, out_size, staged_gradient);
    transform_tiles<gradient_transform>(staged_gradient, group, out_size, d);
    const int64_t tiles = group.tiles(), d_stride = position_stride(tiles, channels);
    if (c == 0) {
      // Position (1, 1) of A g A^T is the sum of the tile.
      for (int64_t j = 0; j < channels; j += kLanes) {
        Vec sum = zero();
        for (int64_t t = 0; t < tiles; ++t) sum += load(d + (kSide + 1) * d_stride + t * channels + j);
        store(bias_sums + j, load(bias_sums + j) + sum);
      }
    }
    if (!w.wants_weight) continue;
    w.stage_x(&x, in, group, in_size, staged_x);
    transform_tiles<input_transform<Tile4>>(staged_x, group, in_size, v);
    Reads next_x = {}, next_gradient = {};
    if (index + 1 < end) {
      const WinogradGroup next = w.plan.group(w.shape.N, index + 1);
      next_x = w.reads_x(&x, in, next);
      next_gradient = w.reads_gradient(&gradient, out, next);
    }
    Prefetch<false> read_x(next_x.first, kPositions);
    Prefetch<false> read_gradient(next_gradient.first, kPositions),
        read_saved(next_gradient.second, kPositions);
    const GemmStrides strides = {1, in_size.channels, channels, row, kLanes};
    for (int64_t p = 0; p < kPositions; ++p) {
      read_x.step();
      read_gradient.step();
      read_saved.step();
      for (int64_t j = 0; j < channels; j += kGemmWidth) {
        const int64_t vecs = (channels - j < kGemmWidth ? channels - j : kGemmWidth) / kLanes;
        gemm(true, in.C, vecs, v + p * position_stride(tiles, in_size.channels), d + p * d_stride + j,
             sums + p * position + j, tiles, strides);
      }
    }
  }
}
