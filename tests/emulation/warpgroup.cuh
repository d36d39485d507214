// The feature kernel of warpgroups; included by features.cuh.
#pragma once
#include "common/cuda/shared_matrix.cuh"

constexpr int kPanelA = 64 * 128, kPanelB = 128 * 128, kPanels = kPanelA + kPanelB;
constexpr int kWarpgroupShared = 1024 + 2 * kPanels + 2 * kPanelB;

// C[64, kN] = bf16(A[64, K] B[128, K]^T) V[128, kN]: a warpgroup multiplies, a warp brings panels of 64
// columns of A and B through two stages and V at last.
template <int kN>
__global__ void __launch_bounds__(160)
    warpgroup_products(const __grid_constant__ fd::TensorMap A, const __grid_constant__ fd::TensorMap B,
                       const __grid_constant__ fd::TensorMap V, float* C, int K) {
  fd::needs_sm90a();
  FD_DYNAMIC_SHARED(char, memory);
  FD_SHARED(uint64_t, full, [3]);
  FD_SHARED(uint64_t, empty, [2]);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, steps = (K + 63) / 64;
  char *stage = fd::piece_boundary(memory), *v = stage + 2 * kPanels;
  if (thread == 0) {
    for (int s = 0; s < 3; ++s) fd::mbarrier_init(full + s, 1);
    for (int s = 0; s < 2; ++s) fd::mbarrier_init(empty + s, 4);
  }
  __syncthreads();
  if (thread == 128) {
    fd::mbarrier_arrive(full + 2, kPanelB * kN / 64);
    for (int piece = 0; piece < kN / 64; ++piece)
      fd::copy_box(v + piece * kPanelB, V, 64 * piece, 0, 0, 0, full + 2);
    for (int i = 0; i < steps; ++i) {
      const int s = i & 1;
      if (i > 1 && !BUG(28)) fd::mbarrier_wait(empty + s, (i / 2 - 1) & 1);  // 28: refills what is multiplied
      fd::mbarrier_arrive(full + s, BUG(29) ? kPanelB : kPanels);            // 29: announces too few bytes
      fd::copy_box(stage + s * kPanels, A, 64 * i, 0, 0, 0, full + s);
      fd::copy_box(stage + s * kPanels + kPanelA, B, 64 * i, 0, 0, 0, full + s);
    }
  } else if (thread < 128) {
    float scores[16][4], sums[kN / 8][4] = {};
    for (int i = 0; i < steps; ++i) {
      const char* a = stage + (i & 1) * kPanels;
      fd::mbarrier_wait(full + (i & 1), i / 2 & 1);
      if (!BUG(30) || i == 0) fd::wgmma_fence(scores);  // 30: no fence after registers were free to change
      for (int k = 0; k < 64; k += 16)                  // 31: 16 columns are taken for 16 bytes
        fd::wgmma_transposed<bf16>(scores, fd::shared_matrix(a + (BUG(31) ? k : 2 * k)),
                                   fd::shared_matrix(a + kPanelA + 2 * k), i + k > 0);
      fd::wgmma_commit();
      if (BUG(32) && lane == 0) fd::mbarrier_arrive(empty + (i & 1));  // 32: before the products are over
      fd::wgmma_wait<0>(scores);
      if (!BUG(32) && lane == 0) fd::mbarrier_arrive(empty + (i & 1));
    }
    uint32_t weights[8][4];
    for (int k = 0; k < 8; ++k)
      for (int e = 0; e < 4; ++e) {
        const float* pair = scores[2 * k + e / 2] + e % 2 * 2;
        const __nv_bfloat162 both{bf16(pair[0]), bf16(pair[1])};
        weights[k][e] = reinterpret_cast<const uint32_t&>(both);
      }
    fd::mbarrier_wait(full + 2, 0);
    fd::wgmma_fence(sums);
    for (int k = 0; k < 8; ++k)  // 33: the pieces of V are taken for neighbours
      fd::wgmma<bf16>(sums, weights[k], fd::shared_matrix(v + 16 * 128 * k, BUG(33) ? 128 : kPanelB));
    fd::wgmma_commit();
    if (!BUG(34)) fd::wgmma_wait<0>(sums);  // 34: reads sums that are not there yet
    for (int n = 0; n < kN / 8; ++n)
      for (int e = 0; e < 4; ++e)
        C[(16 * warp + lane / 4 + e / 2 * 8) * kN + 8 * n + lane % 4 * 2 + e % 2] = sums[n][e];
  }
}
