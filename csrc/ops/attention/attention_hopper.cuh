// output = softmax(scores) v and lse by wgmma (sm_90a), half types; scores and sums stay in registers.
// A block takes 128 queries of one head: a thread brings q and tiles of 128 keys by tensor maps, through two
// stages; two warpgroups take 64 queries each and multiply, one while the other exponentiates. Saves lse in
// fp64.
#pragma once
#include "common/cuda/shared_matrix.cuh"
#include "ops/attention/attention_multiply.cuh"
#include "ops/attention/attention_softmax.cuh"

namespace fastdl::cuda {

// Queries of a block and keys of a tile.
constexpr int kHopperRows = 128;
constexpr int kHopperStages = 2, kWarpgroup = 128, kHopperThreads = 3 * kWarpgroup;
constexpr int kPieceBytes = kHopperRows * fd::kPieceRowBytes;
template <int kD>
constexpr int kHopperTileBytes = kD / fd::kPieceColumns * kPieceBytes;
template <int kD>
constexpr int kHopperBytes = fd::kPieceAlignment + (1 + 2 * kHopperStages) * kHopperTileBytes<kD>;

struct HopperMaps {
  fd::TensorMap q, k, v;
};

// A stage's tiles have arrived; every warp is done with them.
struct HopperBarriers {
  uint64_t q, k[kHopperStages], v[kHopperStages], k_free[kHopperStages], v_free[kHopperStages];

  FD_DEVICE void init() {
    constexpr int kWarps = 2 * kWarpgroup / 32;
    fd::mbarrier_init(&q, 1);
    for (int s = 0; s < kHopperStages; ++s) {
      fd::mbarrier_init(k + s, 1), fd::mbarrier_init(v + s, 1);
      fd::mbarrier_init(k_free + s, kWarps), fd::mbarrier_init(v_free + s, kWarps);
    }
  }
};

// The tiles of a block in shared memory.
template <int kD>
struct HopperTiles {
  char* q;

  FD_DEVICE char* k(int stage) const { return q + (1 + 2 * stage) * kHopperTileBytes<kD>; }
  FD_DEVICE char* v(int stage) const { return k(stage) + kHopperTileBytes<kD>; }
};

// Rows from `row` on, zeros behind the last.
template <int kD>
FD_DEVICE void bring_rows(const fd::TensorMap& map, const AttentionStrides& at, const Head& head, int64_t h,
                          int row, char* to, uint64_t* arrived) {
  fd::mbarrier_arrive(arrived, kHopperTileBytes<kD>);
  // What is broadcast is one head, or one sequence, of the map.
  const int of_heads = at.h == 0 ? 0 : static_cast<int>(h),
            of_sequences = at.b == 0 ? 0 : static_cast<int>(head.span.b);
  for (int piece = 0; piece < kD / fd::kPieceColumns; ++piece)
    fd::copy_box(to + piece * kPieceBytes, map, piece * fd::kPieceColumns, row, of_heads, of_sequences,
                 arrived);
}

template <int kD>
FD_DEVICE void bring_tiles(const HopperMaps& maps, const Head& head, int first, const TileRange& keys,
                           const HopperTiles<kD>& tiles, HopperBarriers& barriers) {
  const AttentionCall& c = head.c;
  bring_rows<kD>(maps.q, c.q_strides, head, head.h, first, tiles.q, &barriers.q);
  for (int tile = 0, j = keys.first; j < keys.end; ++tile, j += kHopperRows) {
    const int stage = tile % kHopperStages, use = tile / kHopperStages;
    if (use > 0) fd::mbarrier_wait(barriers.k_free + stage, (use - 1) & 1);
    bring_rows<kD>(maps.k, c.k_strides, head, head.h_kv(), j, tiles.k(stage), barriers.k + stage);
    if (use > 0) fd::mbarrier_wait(barriers.v_free + stage, (use - 1) & 1);
    bring_rows<kD>(maps.v, c.v_strides, head, head.h_kv(), j, tiles.v(stage), barriers.v + stage);
  }
}

// One lane speaks for its warp.
FD_DEVICE void free_tile(uint64_t* barrier) {
  if (threadIdx.x % 32 == 0) fd::mbarrier_arrive(barrier);
}

// 64 queries, from `first` on, of one warpgroup.
template <class T, int kD>
FD_DEVICE void attend(const AttentionForward& a, const Head& head, int first, const char* q,
                      const TileRange& keys, const HopperTiles<kD>& tiles, HopperBarriers& barriers) {
  constexpr int kColumns = kHopperRows / 8, kStep = 16;
  const int row = first + threadIdx.x % kWarpgroup / 32 * 16;
  OnlineSoftmax<T, kD> softmax(head, ScoreTile<false, kColumns>{row, 0}, true);
  if (keys.first < keys.end) fd::mbarrier_wait(&barriers.q, 0);
  for (int tile = 0, j = keys.first; j < keys.end; ++tile, j += kHopperRows) {
    const int stage = tile % kHopperStages, parity = tile / kHopperStages & 1;
    float s[kColumns][4];
    fd::mbarrier_wait(barriers.k + stage, parity);
    fd::wgmma_fence(s);
#pragma unroll
    for (int d = 0; d < kD; d += kStep) {
      const int at = d / fd::kPieceColumns * kPieceBytes + d % fd::kPieceColumns * 2;
      fd::wgmma_transposed<T>(s, fd::shared_matrix(q + at), fd::shared_matrix(tiles.k(stage) + at), d > 0);
    }
    fd::wgmma_commit();
    fd::wgmma_wait<0>(s);
    free_tile(barriers.k_free + stage);
    show_scores<T>(head, ScoreTile<false, kColumns>{row, j}, s);
    softmax.take(s);
    uint32_t weights[kColumns / 2][4];
#pragma unroll
    for (int m = 0; m < kColumns / 2; ++m)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        weights[m][e] = pack<T>(s[2 * m + e / 2][e % 2 * 2], s[2 * m + e / 2][e % 2 * 2 + 1]);
    fd::mbarrier_wait(barriers.v + stage, parity);
    fd::wgmma_fence(softmax.output);
#pragma unroll
    for (int m = 0; m < kColumns / 2; ++m)
      fd::wgmma<T>(softmax.output, weights[m],
                   fd::shared_matrix(tiles.v(stage) + m * kStep * fd::kPieceRowBytes, kPieceBytes));
    fd::wgmma_commit();
    fd::wgmma_wait<0>(softmax.output);
    free_tile(barriers.v_free + stage);
  }
  softmax.store(a, head, row);
}

// The last queries of a causal call see the most keys: their blocks go first. blocks: of one head. The first
// warpgroup leaves its registers to the two that multiply.
template <class T, int kD>
__global__ void __launch_bounds__(kHopperThreads, 1)
    attention_hopper_kernel(const __grid_constant__ AttentionForward a,
                            const __grid_constant__ HopperMaps maps, int blocks) {
  fd::needs_sm90a();
  FD_DYNAMIC_SHARED(char, memory);
  FD_SHARED(HopperBarriers, barriers, [1]);
  const int64_t number = blockIdx.x / blocks;
  const Head head(a.c, number / a.c.H, number % a.c.H);
  const int first = (blocks - 1 - static_cast<int>(blockIdx.x % blocks)) * kHopperRows;
  const TileRange keys = head.keys<kHopperRows>(first, kHopperRows);
  const HopperTiles<kD> tiles{fd::piece_boundary(memory)};
  if (threadIdx.x == 0) barriers[0].init();
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    fd::fewer_registers<24>();
    if (threadIdx.x == 0 && keys.first < keys.end) bring_tiles(maps, head, first, keys, tiles, barriers[0]);
  } else {
    fd::more_registers<240>();
    const int rows = (static_cast<int>(threadIdx.x) / kWarpgroup - 1) * 64;
    attend<T, kD>(a, head, first + rows, tiles.q + rows * fd::kPieceRowBytes, keys, tiles, barriers[0]);
  }
}

}  // namespace fastdl::cuda
