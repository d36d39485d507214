// The implicit GEMM's tile: which thread owns which positions and channels, and where a tile lies in shared
// memory. Rows are positions of the convolution, columns output channels, depth input channels times taps.
#pragma once
#include "common/cuda/divide.cuh"
#include "ops/conv_relu_maxpool/window.cuh"

namespace fastdl::cuda {

// Tensor cores take rows r and r + 8 of an m16 tile in one thread. Rows are dealt so that the 16 accumulator
// rows of a thread's four m16 tiles are whole 2x2 windows: the pool never leaves registers.
constexpr int kBlockM = 128;  // 32 windows; two warps of 64 rows each
constexpr int kWarpM = 64, kWarpN = 32;
constexpr int kRowBytes = 64;  // of depth a step: 32 half, 16 fp32, 8 fp64
constexpr int kStages = 3;
constexpr int kChannelsPerThread = 8;
constexpr int kGroups = 2, kPositions = 4;  // a thread owns two windows of four positions
constexpr int kMaxTaps = 15;                // of KH and KW each: their validity is kept as bits

template <class T>
constexpr int kDepth = kRowBytes / static_cast<int>(sizeof(T));
template <class T>
constexpr int kChunk = 16 / static_cast<int>(sizeof(T));
constexpr int kChunks = kRowBytes / 16;

// 16-byte chunks are permuted so that any eight rows read by ldmatrix, or written by eight threads, touch all
// 32 banks once: two rows of 64 bytes make a line, and the chunk moves on by one every line.
FD_DEVICE int swizzled(int row, int chunk) { return row * kRowBytes + ((chunk ^ (row >> 1 & 3)) << 4); }

// A warp's place in the block, a lane's place in the warp. Fragments: row lane / 4, columns 2 * (lane % 4)
// and next.
struct Place {
  int warp_m, warp_n, group, column;
  template <int kWarpsN>
  static FD_DEVICE Place of(int thread) {
    int warp = thread / 32, lane = thread % 32;
    return {warp / kWarpsN, warp % kWarpsN, lane / 4, lane % 4};
  }
  FD_DEVICE int window(int j) const { return warp_m * (kWarpM / kPositions) + group * kGroups + j; }
  // The thread's eight channels are neighbours, so that it stores them at once.
  FD_DEVICE int channel() const { return warp_n * kWarpN + column * kChannelsPerThread; }
};

// Which position of the block, 4 * window + position in the window, is row `row` of the tile.
FD_DEVICE int position_of_row(int row) {
  int tile = row / 16 % 4, half = row / 8 % 2, group = row % 8;
  int window = row / kWarpM * (kWarpM / kPositions) + group * kGroups + tile / 2;
  return window * kPositions + tile % 2 * 2 + half;
}

// Which channel of the block is row `row` of the weights' tile: the inverse of what a lane's accumulators
// hold.
FD_DEVICE int channel_of_row(int row) {
  int tile = row / 8 % 4, column = row % 8;
  return row / kWarpN * kWarpN + column / 2 * kChannelsPerThread + tile * 2 + column % 2;
}

template <class T>
struct ImplicitGemm {
  const T *x, *packed, *bias;
  T* output;
  uint8_t* record;
  int64_t x_strides[4], output_strides[4];
  int C, H, W, C_out, KH, KW;
  int stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  bool pooled, vector_output;
  int64_t positions;  // rows of the product; four a window if pooled
  int depth, depth_tiles, channel_tiles;
  fd::Divider by_OW, by_plane, by_KW, by_KH, by_chunks;
  int64_t plane;  // OH * OW
};

struct Pixel {
  int64_t n;
  int h, w;
};

// Splits 64-bit numbers of pooled pixels near `first` with 32-bit divisions: one 64-bit division a thread.
template <class T>
class PixelLocator {
 public:
  FD_DEVICE PixelLocator(const ImplicitGemm<T>& p, int64_t first) : p_(p) {
    n_ = first / p.plane;
    within_ = static_cast<uint32_t>(first - n_ * p.plane);
  }
  FD_DEVICE Pixel operator()(int after) const {
    uint32_t n = within_ + after;
    uint32_t h = p_.by_plane.split(n);
    uint32_t w = p_.by_OW.split(h);
    return {n_ + n, static_cast<int>(h), static_cast<int>(w)};
  }

 private:
  const ImplicitGemm<T>& p_;
  int64_t n_;
  uint32_t within_;
};

}  // namespace fastdl::cuda
