#include "ops/conv_relu_maxpool/winograd_plan.h"

#include <algorithm>

namespace fastdl::cpu {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The part length that cuts `count` into as few parts of at most `most` as possible, all about equal.
int64_t even_part(int64_t count, int64_t most) {
  return count == 0 ? 1 : ceil_div(count, ceil_div(count, most));
}

}  // namespace

int64_t winograd_tile(const WinogradShape& shape) {
  // The relative error of 6x6 tiles is twice that of 4x4 tiles, 3.7e-6 with 96 channels. On Zen 1, with 512
  // KB of L2, they gained 7% with 96 and nothing with 128.
  constexpr int64_t kMostChannels = 96;
  const int64_t products4 = 36 * ceil_div(shape.OH, 4) * ceil_div(shape.OW, 4),
                products6 = 64 * ceil_div(shape.OH, 6) * ceil_div(shape.OW, 6);
  // 13% faster with 0.79 of the products, 7% with 0.87, 0 to 3% with 0.91.
  return shape.C <= kMostChannels && 10 * products6 <= 9 * products4 ? 6 : 4;
}

WinogradPlan winograd_plan(const WinogradShape& shape, int64_t tile, int64_t tiles, int64_t least_groups) {
  WinogradPlan plan;
  plan.tile = tile;
  plan.tiles_y = ceil_div(shape.OH, tile);
  plan.tiles_x = ceil_div(shape.OW, tile);
  const int64_t image_tiles = plan.tiles_y * plan.tiles_x;
  const int64_t most = std::max<int64_t>(6, std::min(tiles, shape.N * image_tiles / least_groups));
  plan.cols = even_part(plan.tiles_x, most);
  plan.rows = plan.cols < plan.tiles_x ? 1 : even_part(plan.tiles_y, std::max<int64_t>(1, most / plan.cols));
  const bool whole = plan.rows == plan.tiles_y && plan.cols == plan.tiles_x;
  plan.images = whole ? even_part(shape.N, std::max<int64_t>(1, most / image_tiles)) : 1;
  plan.groups_n = ceil_div(shape.N, plan.images);
  plan.groups_y = ceil_div(plan.tiles_y, plan.rows);
  plan.groups_x = ceil_div(plan.tiles_x, plan.cols);
  return plan;
}

WinogradGroup WinogradPlan::group(int64_t N, int64_t index) const {
  WinogradGroup g;
  g.tile = tile;
  g.x = index % groups_x * cols;
  g.y = index / groups_x % groups_y * rows;
  g.n = index / groups_x / groups_y * images;
  g.images = std::min(images, N - g.n);
  g.rows = std::min(rows, tiles_y - g.y);
  g.cols = std::min(cols, tiles_x - g.x);
  return g;
}

}  // namespace fastdl::cpu
