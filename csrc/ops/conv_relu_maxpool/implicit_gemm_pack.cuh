// weight [C_out, C, KH, KW] -> [channel tile][depth tile][row][64 bytes], zeros where the tile sticks out.
// A thread writes one element. About 3 us for 128x64x3x3, against reading the plain layout without coalescing
// in every block of the product.
#pragma once
#include "ops/conv_relu_maxpool/implicit_gemm_tile.cuh"

namespace fastdl::cuda {

template <class T>
struct PackWeight {
  const T* weight;
  T* packed;
  int64_t elements;
  int C, C_out, taps, depth, depth_tiles, block_n;
  bool taps_outside;  // depth runs over (tap, c), else over (c, tap)
  bool tf32;
};

constexpr int kPackThreads = 256;

template <class T>
__global__ void __launch_bounds__(kPackThreads) pack_weight_kernel(PackWeight<T> p) {
  int64_t at = int64_t{blockIdx.x} * kPackThreads + threadIdx.x;
  if (at >= p.elements) return;
  int64_t row_at = at / kDepth<T>, tile = row_at / p.block_n;
  int row = static_cast<int>(row_at % p.block_n);
  int channel = static_cast<int>(tile / p.depth_tiles) * p.block_n + channel_of_row(row);
  int k = static_cast<int>(tile % p.depth_tiles) * kDepth<T> + static_cast<int>(at % kDepth<T>);
  T v = fd::from_compute<T>(0);
  if (channel < p.C_out && k < p.depth) {
    int c = p.taps_outside ? k % p.C : k / p.taps, tap = p.taps_outside ? k / p.C : k % p.taps;
    v = p.weight[(int64_t{channel} * p.C + c) * p.taps + tap];
    if constexpr (sizeof(T) == 4) {
      if (p.tf32) {
        uint32_t rounded = fd::round_to_tf32(reinterpret_cast<uint32_t&>(v));
        v = reinterpret_cast<T&>(rounded);
      }
    }
  }
  p.packed[at] = v;
}

}  // namespace fastdl::cuda
