// One stage multiplied into a thread's accumulators: two windows of four positions, times eight channels.
// Both policies own the same elements and read the same layout; they differ only in the arithmetic.
#pragma once
#include "ops/conv_relu_maxpool/implicit_gemm_tile.cuh"

namespace fastdl::cuda {

// mma.sync: a warp's 64x32 product is 4x4 tiles of m16n8; per 32 bytes of depth 6 ldmatrix feed 16 mma.
template <class T>
class MultiplyTensorCore {
 public:
  using Sum = float;
  static constexpr bool kTf32 = sizeof(T) == 4;
  static constexpr int kStepsPerPiece = 0;

  FD_DEVICE Sum at(int j, int position, int channel) const {
    return sums_[2 * j + position / 2][channel / 2][position % 2 * 2 + channel % 2];
  }
  FD_DEVICE void step(const Place& place, const char* x_tile, const char* weight_tile) {
    int lane = threadIdx.x % 32;
    int x_row = place.warp_m * kWarpM + lane % 16,
        weight_row = place.warp_n * kWarpN + lane / 16 * 8 + lane % 8;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; chunk += 2) {
      uint32_t x[4][4], weight[4][2];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        fd::ldmatrix_x4(x[m], x_tile + swizzled(x_row + 16 * m, chunk + lane / 16));
        if constexpr (kTf32)
#pragma unroll
          for (int i = 0; i < 4; ++i) x[m][i] = fd::round_to_tf32(x[m][i]);
      }
#pragma unroll
      for (int n = 0; n < 4; n += 2) {
        uint32_t pair[4];
        fd::ldmatrix_x4(pair, weight_tile + swizzled(weight_row + 8 * n, chunk + lane / 8 % 2));
        weight[n][0] = pair[0], weight[n][1] = pair[1];
        weight[n + 1][0] = pair[2], weight[n + 1][1] = pair[3];
      }
#pragma unroll
      for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n) fd::mma<T>(sums_[m][n], x[m], weight[n]);
    }
  }

 private:
  float sums_[4][4][4] = {};
};

// FMA in T (float or double): per 16 bytes of depth 24 shared loads feed 64 multiply-adds of each element.
// In fp32 sums run over pieces of 64 products, and these are added: one sum over 576 products has more than
// twice the rms error.
template <class T>
class MultiplyExact {
 public:
  using Sum = T;
  static constexpr bool kTf32 = false;
  static constexpr int kStepsPerPiece = sizeof(T) == 4 ? 64 / kDepth<T> : 0;

  FD_DEVICE Sum at(int j, int position, int channel) const {
    Sum sum = sums_[j][position][channel];
    if constexpr (kStepsPerPiece > 0) sum += pieces_[j][position][channel];
    return sum;
  }
  FD_DEVICE void end_piece() {
#pragma unroll
    for (int j = 0; j < kGroups; ++j)
#pragma unroll
      for (int position = 0; position < kPositions; ++position)
#pragma unroll
        for (int c = 0; c < kChannelsPerThread; ++c) {
          pieces_[j][position][c] += sums_[j][position][c];
          sums_[j][position][c] = 0;
        }
  }
  FD_DEVICE void step(const Place& place, const char* x_tile, const char* weight_tile) {
    // Not unrolled, and four channels at a time: fp64 sums alone, and fp32 sums and pieces, take 128
    // registers.
#pragma unroll 1
    for (int chunk = 0; chunk < kChunks; ++chunk)
#pragma unroll
      for (int first = 0; first < kChannelsPerThread; first += 4)
        step(place, x_tile, weight_tile, chunk, first);
  }

 private:
  FD_DEVICE void step(const Place& place, const char* x_tile, const char* weight_tile, int chunk, int first) {
    fd::Vector<T, kChunk<T>> weight[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      int row = place.warp_n * kWarpN + (first + c) / 2 * 8 + place.column * 2 + c % 2;
      weight[c] = fd::load_vector<kChunk<T>>(reinterpret_cast<const T*>(weight_tile + swizzled(row, chunk)));
    }
#pragma unroll
    for (int i = 0; i < kGroups * kPositions; ++i) {
      int row = place.warp_m * kWarpM + i * 8 + place.group;
      auto x = fd::load_vector<kChunk<T>>(reinterpret_cast<const T*>(x_tile + swizzled(row, chunk)));
#pragma unroll
      for (int c = 0; c < 4; ++c)
#pragma unroll
        for (int k = 0; k < kChunk<T>; ++k)
          sums_[i / kPositions][i % kPositions][first + c] += x.value[k] * weight[c].value[k];
    }
  }

  T sums_[kGroups][kPositions][kChannelsPerThread] = {};
  T pieces_[kStepsPerPiece > 0 ? kGroups : 1][kPositions][kChannelsPerThread] = {};
};

}  // namespace fastdl::cuda
