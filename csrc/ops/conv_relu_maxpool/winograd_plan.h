// How a 3x3 convolution is cut into groups of output tiles that one worker carries through its cache.
#pragma once
#include <cstdint>

namespace fastdl::cpu {

// The convolution [N, C, H, W] -> [N, K, OH, OW] with stride 1; grad_input is one as well, of the expanded
// gradient.
struct WinogradShape {
  int64_t N, C, H, W;
  int64_t K, OH, OW;
  int64_t padding[2];  // may be negative: rows and columns that no output reads
};

// Outputs of a tile, each way: 4 or 6. By the shape of an image alone, so that neither the batch nor the
// threads change a bit.
int64_t winograd_tile(const WinogradShape& shape);

// Tiles [y, y + rows) x [x, x + cols) of the images [n, n + images), each of `tile` x `tile` outputs.
struct WinogradGroup {
  int64_t tile;
  int64_t n, y, x;
  int64_t images, rows, cols;
  int64_t tiles() const { return images * rows * cols; }
};

// Groups have `images` x `rows` x `cols` tiles, the last of each axis fewer. More than one image only if
// whole.
struct WinogradPlan {
  int64_t tile;
  int64_t tiles_y, tiles_x;
  int64_t images, rows, cols;
  int64_t groups_n, groups_y, groups_x;
  int64_t groups() const { return groups_n * groups_y * groups_x; }
  int64_t tiles() const { return images * rows * cols; }
  WinogradGroup group(int64_t N, int64_t index) const;
};

// Groups of about `tiles` tiles, and not fewer groups than `least_groups` where that leaves six tiles to
// each.
WinogradPlan winograd_plan(const WinogradShape& shape, int64_t tile, int64_t tiles, int64_t least_groups);

}  // namespace fastdl::cpu
