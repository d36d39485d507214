// The two products of a warp: 16 rows against a tile's rows, and 16 rows of weights times a tile. Half types
// by mma.sync, fp32 by FMA in the same fragments, so that all that lies between the products is the same.
// Saves nothing.
#pragma once
#include "ops/attention/attention_tile.cuh"

namespace fastdl::cuda {

template <class T>
FD_DEVICE uint32_t pack(float low, float high) {
  fd::Vector<T, 2> pair{{fd::from_compute<T>(low), fd::from_compute<T>(high)}};
  return reinterpret_cast<const uint32_t&>(pair);
}

FD_DEVICE void multiply_add(float& sum, const fd::Vector<float, 4>& a, const fd::Vector<float, 4>& b) {
#pragma unroll
  for (int k = 0; k < 4; ++k) sum += a.value[k] * b.value[k];
}

// sums = left rows first .. first + 16 times the transpose of right rows 0 .. 8 * kTiles.
template <class T, int kD, int kTiles>
FD_DEVICE void multiply_transposed(const char* left_tile, int first, const char* right_tile,
                                   float (&sums)[kTiles][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[n][e] = 0;
  if constexpr (sizeof(T) == 2) {
#pragma unroll 4
    for (int chunk = 0; chunk < kD / kChunk<T>; chunk += 2) {
      uint32_t left[4];
      fd::ldmatrix_x4(left, left_tile + swizzled<T, kD>(first + lane % 16, chunk + lane / 16));
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        uint32_t pair[4];
        fd::ldmatrix_x4(pair,
                        right_tile + swizzled<T, kD>(8 * n + lane / 16 * 8 + lane % 8, chunk + lane / 8 % 2));
        const uint32_t even[2] = {pair[0], pair[1]}, odd[2] = {pair[2], pair[3]};
        fd::mma<T>(sums[n], left, even);
        fd::mma<T>(sums[n + 1], left, odd);
      }
    }
  } else {
    // Sums of 64 products, then their sum: one long sum has a larger rms error than eager PyTorch's.
#pragma unroll 1
    for (int piece = 0; piece < kD / kChunk<T>; piece += 16) {
      float part[kTiles][4] = {};
#pragma unroll 2
      for (int chunk = piece; chunk < piece + 16; ++chunk) {
        fd::Vector<T, 4> left[2];
#pragma unroll
        for (int half = 0; half < 2; ++half)
          left[half] = fd::load_vector<4>(
              reinterpret_cast<const T*>(left_tile + swizzled<T, kD>(first + fragment_row(2 * half), chunk)));
#pragma unroll
        for (int n = 0; n < kTiles; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const auto right = fd::load_vector<4>(
                reinterpret_cast<const T*>(right_tile + swizzled<T, kD>(fragment_column(n, e), chunk)));
            multiply_add(part[n][e], left[0], right);
            multiply_add(part[n][2 + e], left[1], right);
          }
      }
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[n][e] += part[n][e];
    }
  }
}

// sums += weights [16, 8 * kTiles], rounded to T, times the tile's rows 0 .. 8 * kTiles. fp32: the lanes of a
// quad hold a row's weights and tell each other.
template <class T, int kD, int kTiles>
FD_DEVICE void multiply_add(const float (&weights)[kTiles][4], const char* tile, float (&sums)[kD / 8][4]) {
  const int lane = threadIdx.x % 32;
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int m = 0; m < kTiles; m += 2) {
      const uint32_t left[4] = {pack<T>(weights[m][0], weights[m][1]), pack<T>(weights[m][2], weights[m][3]),
                                pack<T>(weights[m + 1][0], weights[m + 1][1]),
                                pack<T>(weights[m + 1][2], weights[m + 1][3])};
#pragma unroll
      for (int n = 0; n < kD / 8; n += 2) {
        uint32_t pair[4];
        fd::ldmatrix_x4(pair, tile + swizzled<T, kD>(8 * m + lane % 16, n + lane / 16), true);
        const uint32_t even[2] = {pair[0], pair[1]}, odd[2] = {pair[2], pair[3]};
        fd::mma<T>(sums[n], left, even);
        fd::mma<T>(sums[n + 1], left, odd);
      }
    }
  } else {
    // 64 columns: of each row of weights eight loads and two shuffles feed 32 multiply-adds. Half as many
    // where sums alone take 128 registers.
    constexpr int kGroup = kD == 256 ? 4 : 8;
#pragma unroll
    for (int group = 0; group < kD / 8; group += kGroup) {
      float part[kGroup][4] = {};
#pragma unroll
      for (int m = 0; m < kTiles; ++m)
#pragma unroll 1
        for (int owner = 0; owner < 4; ++owner)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float upper = __shfl_sync(~0u, weights[m][e], owner, 4);
            const float lower = __shfl_sync(~0u, weights[m][2 + e], owner, 4);
            const int row = 8 * m + 2 * owner + e;
#pragma unroll
            for (int n = 0; n < kGroup; ++n) {
              const int column = fragment_column(group + n, 0);
              const auto pair = fd::load_vector<2>(
                  reinterpret_cast<const T*>(tile + swizzled<T, kD>(row, column / 4)) + column % 4);
#pragma unroll
              for (int k = 0; k < 2; ++k) {
                part[n][k] += upper * pair.value[k];
                part[n][2 + k] += lower * pair.value[k];
              }
            }
          }
#pragma unroll
      for (int n = 0; n < kGroup; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[group + n][e] += part[n][e];
    }
  }
}

}  // namespace fastdl::cuda
