// How the implicit GEMM of AMX tiles is cut into tasks and these into strips: what fits in which cache.
// Computes nothing, saves nothing.

constexpr int64_t kPairOutputs = 2 * kTileHeight;  // channels of two right operands side by side

struct TilePlan {
  TileStage stage;
  int64_t steps, pairs;  // operands along the sum; pairs of columns of them
  // Of a task: output rows of how many images, and pairs. The groups of each there are.
  int64_t rows, images, task_pairs, row_groups, image_groups, shares;
  // Of a strip, computed at once for a pair: rows of one image, or several whole images.
  int64_t strip_rows, strip_images;
  int64_t image_rows, plane;                     // staged rows of an image; pixels of a slot
  bool contiguous;                               // of the output
  int64_t staged, sums, values, record, worker;  // floats of a worker's parts and of all of them
};

// Cycles of the products of so many operands of 16 pixels: two are as fast as the unit, one waits for itself.
FASTDL_INLINE int64_t block_cost(int64_t operands) { return operands / 2 * 64 + operands % 2 * 52; }

// The left operands of a strip: whole rows one after the other, what is staged between them computed in vain,
// or each row by itself.
struct StripTiles {
  int64_t in_row, row;  // 0: all of them in one row
  int64_t count;
};

FASTDL_INLINE StripTiles strip_tiles(const ConvGeometry& g, const TileStage& s, int64_t image_rows,
                                     int64_t images, int64_t rows) {
  const int64_t apart = tiles_of(g.CW, kTileHeight);
  const int64_t together = tiles_of(((images - 1) * image_rows + rows - 1) * s.length + g.CW, kTileHeight);
  if (images == 1 && block_cost(apart * rows) < block_cost(together)) return {apart, s.length, apart * rows};
  return {together, 0, together};
}

FASTDL_INLINE int64_t most_conv_rows(const ConvGeometry& g, const PoolGeometry& p, int64_t rows) {
  if (!p.present) return rows;
  return smaller((rows - 1) * p.stride[0] + (p.size[0] - 1) * p.dilation[0] + 1, g.CH);
}

FASTDL_INLINE TilePlan tile_plan(const ConvReluMaxpoolForward& a, int64_t threads) {
  // Sums of a strip in half of L1, beside two right operands of each step; what is staged in L2.
  constexpr int64_t kStripPixels = 256, kStagedBytes = 512 << 10, kTaskPixels = 1024;
  const ConvGeometry& g = a.conv;
  const PoolGeometry& p = a.pool;
  TilePlan plan = {};
  plan.stage = tile_stage(g, a.x_strides);
  const TileStage& s = plan.stage;
  plan.steps = s.chunks * s.taps, plan.pairs = tiles_of(g.C_out, kPairOutputs);
  plan.contiguous = is_contiguous(g.C_out, p.OH, p.OW, a.output_strides);
  plan.image_rows = most_conv_rows(g, p, p.OH) + s.reach[0];

  // The cheapest strip: least cost an output row, or an image.
  double least = 0;
  for (int64_t rows = 1; rows <= p.OH; ++rows) {
    const int64_t count = most_conv_rows(g, p, rows);
    if (rows > 1 && count * s.length > kStripPixels) break;
    const StripTiles tiles = strip_tiles(g, s, plan.image_rows, 1, count);
    const double cost = static_cast<double>(block_cost(tiles.count)) / static_cast<double>(rows);
    if (rows == 1 || cost <= least) least = cost, plan.strip_rows = rows;
  }
  plan.strip_images = 1;
  const int64_t whole = most_conv_rows(g, p, p.OH);
  for (int64_t images = 1; plan.strip_rows == p.OH && images <= g.N; ++images) {
    if (images > 1 && images * plan.image_rows * s.length > kStripPixels) break;
    const StripTiles tiles = strip_tiles(g, s, plan.image_rows, images, whole);
    const double cost = static_cast<double>(block_cost(tiles.count)) / static_cast<double>(images);
    if (images == 1 || cost <= least) least = cost, plan.strip_images = images;
  }

  // Tasks: enough for every thread to take some, each with all it has staged in L2.
  const int64_t wanted = 4 * threads;
  const int64_t pixel = s.chunks * s.slots[0] * s.slots[1] * kTileDepth * 2;  // bytes
  const auto staged = [&](int64_t rows) {
    return (most_conv_rows(g, p, rows) + s.reach[0]) * s.length * pixel;
  };
  plan.rows = p.OH, plan.images = plan.strip_images;
  if (plan.strip_rows == p.OH) {
    const auto fits = [&](int64_t images) {
      return tiles_of(g.N, images) >= wanted && images * staged(p.OH) <= kStagedBytes &&
             images * whole * s.length <= kTaskPixels;
    };
    while (plan.images > 1 && tiles_of(g.N, plan.images) < wanted) --plan.images;
    plan.strip_images = plan.images;
    while (fits(plan.images + plan.strip_images)) plan.images += plan.strip_images;
  } else {
    while (plan.rows > plan.strip_rows &&
           (staged(plan.rows) > kStagedBytes || g.N * tiles_of(p.OH, plan.rows) < wanted))
      plan.rows = whole_tiles(plan.rows, plan.strip_rows) - plan.strip_rows;
  }
  plan.row_groups = tiles_of(p.OH, plan.rows), plan.image_groups = tiles_of(g.N, plan.images);
  // Every share stages the input for itself.
  const int64_t tasks = plan.row_groups * plan.image_groups;
  plan.task_pairs = tasks >= wanted ? plan.pairs : tiles_of(plan.pairs, tiles_of(wanted, tasks));
  plan.shares = tiles_of(plan.pairs, plan.task_pairs);

  plan.image_rows = most_conv_rows(g, p, plan.rows) + s.reach[0];
  // The last operand and the last rows of sums end beyond.
  plan.plane = plan.images * plan.image_rows * s.length;
  const int64_t slots = s.chunks * s.slots[0] * s.slots[1];
  plan.staged = (slots * plan.plane + kTileHeight) * kTileDepth / 2;
  const int64_t strip_rows =
      plan.strip_images > 1 ? plan.strip_images * plan.image_rows : most_conv_rows(g, p, plan.strip_rows);
  plan.sums = (strip_rows * s.length + 2 * kTileHeight) * kPairOutputs;
  const int64_t pooled = whole_tiles(plan.strip_rows * p.OW, 4 * kLanes) * kPairOutputs;
  plan.values = plan.contiguous ? pooled / 2 : 0;
  plan.record = plan.contiguous && a.record != nullptr ? pooled / 4 : 0;
  plan.worker = whole_tiles(plan.staged + plan.sums + plan.values + plan.record, 16);
  return plan;
}
