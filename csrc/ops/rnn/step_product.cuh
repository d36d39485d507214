// One step's product and what is done with it: every launch of the step kernels is this kernel with another
// job. A block makes 16 units of all gates by 16 rows; its four warps share K and add up in shared memory;
// then a thread
//   finishes two units at a time. Grid (row tiles, unit tiles, directions).
// Saves what its job saves.
#pragma once
#include "ops/rnn/product.cuh"

namespace fastdl::cuda {

constexpr int kStepWarps = 4, kStepThreads = 32 * kStepWarps;
constexpr int kStepTiles = 2, kStepRows = kStepTiles * kTileRows;
// Of 16 units; four rows apart are 16 banks apart, so that a fragment is stored without conflicts.
constexpr int kSumPitch = 20;

// A Job has: Element; kGates; kSegments of K; rows(d) and units to make; length(s), weight(s, d) and line(s,
// d, b) of segment s; finish(d, b, unit, sums of the gates).
template <class Job>
__global__ void __launch_bounds__(kStepThreads, 3) step_kernel(const __grid_constant__ Job job) {
  using T = typename Job::Element;
  using M = Multiply<T>;
  using Sum = typename M::Sum;
  constexpr int kGates = Job::kGates;
  FD_SHARED(Sum, sums, [kStepWarps][kGates][kStepRows][kSumPitch]);
  const int d = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t first_row = int64_t{blockIdx.x} * kStepRows, first_unit = int64_t{blockIdx.y} * kTileUnits;
  const int64_t rows = job.rows(d);
  if (first_row >= rows) return;

  WarpProduct<T, kGates, kStepTiles> product;
#pragma unroll
  for (int s = 0; s < Job::kSegments; ++s) {
    typename WarpProduct<T, kGates, kStepTiles>::Lines lines;
#pragma unroll
    for (int i = 0; i < kStepTiles; ++i)
#pragma unroll
      for (int line = 0; line < M::kLines; ++line) {
        const int64_t b = first_row + i * kTileRows + M::row(lane, line);
        lines[i][line] = b < rows ? job.line(s, d, b) : Line<T>{};
      }
    product.add(job.weight(s, d), first_unit, job.units, lines, job.length(s), warp, kStepWarps);
  }
  product.store([&](int q, int row, int unit) -> Sum& { return sums[warp][q][row][unit]; });
  __syncthreads();
  for (int i = threadIdx.x; i < kStepRows * kTileUnits; i += kStepThreads) {
    const int row = i / kTileUnits, unit = i % kTileUnits;
    if (first_row + row >= rows || first_unit + unit >= job.units) continue;
    Sum total[kGates];
#pragma unroll
    for (int q = 0; q < kGates; ++q) {
      total[q] = sums[0][q][row][unit];
#pragma unroll
      for (int w = 1; w < kStepWarps; ++w) total[q] += sums[w][q][row][unit];
    }
    job.finish(d, first_row + row, first_unit + unit, total);
  }
}

template <class Job>
cudaError_t launch_step(const Job& job, int64_t rows, int64_t directions, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  const auto tiles = [](int64_t n, int each) { return static_cast<unsigned>((n + each - 1) / each); };
  const dim3 grid(tiles(rows, kStepRows), tiles(job.units, kTileUnits), static_cast<unsigned>(directions));
  return fd::launch(step_kernel<Job>, {grid, dim3(kStepThreads)}, stream, job);
}

}  // namespace fastdl::cuda
