// One small kernel for every feature of the emulation, each with seeded bugs: BUG(n) is true for the bug that
// a run asks for. A detector that stops catching its bug must fail the tests.
#pragma once
#include "common/cuda/device.cuh"

#ifdef FD_EMULATE
inline int seeded_bug = 0;
#define BUG(n) (seeded_bug == (n))
#else
#define BUG(n) false
#endif
using bf16 = __nv_bfloat16;

// Tiled fp32 product: static shared memory, __syncthreads.
template <int kTile>
__global__ void matmul(const float* A, const float* B, float* C, int M, int N, int K) {
  FD_SHARED(float, a, [kTile][kTile]);
  FD_SHARED(float, b, [kTile][kTile]);
  int ty = threadIdx.y, tx = threadIdx.x, row = blockIdx.y * kTile + ty, column = blockIdx.x * kTile + tx;
  float sum = 0;
  if (BUG(4) && column >= N) return;  // threads leave before the barrier
  for (int k0 = 0; k0 < K; k0 += kTile) {
    a[ty][tx] = row < M && k0 + tx < K ? A[row * K + k0 + tx] : 0.f;
    b[ty][tx] = column < N && k0 + ty < K ? B[(k0 + ty) * N + column] : 0.f;
    if (!BUG(1)) __syncthreads();                                         // 1: barrier before use missing
    for (int k = 0; k < kTile + BUG(2); ++k) sum += a[ty][k] * b[k][tx];  // 2: off by one
    if (!BUG(11)) __syncthreads();                                        // 11: barrier after use missing
  }
  if (row < M && (BUG(3) || column < N)) C[row * N + column] = sum;  // 3: column bound forgotten
}

// Row softmax: warp shuffles, then shared memory between warps.
__global__ void softmax(const float* x, float* y, int n) {
  FD_SHARED(float, partial, [32]);
  const float* row = x + size_t(blockIdx.x) * n;
  int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5, warps = blockDim.x >> 5;
  float highest = -INFINITY, sum = 0;
  for (int i = thread; i < n; i += blockDim.x) highest = fmaxf(highest, row[i]);
  if (!BUG(6) || thread < n)  // 6: a full mask although some lanes skip it
    for (int d = 16; d; d >>= 1) highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, d));
  if (lane == 0) partial[warp] = highest;
  __syncthreads();
  highest = partial[0];
  for (int i = 1; i < warps; ++i) highest = fmaxf(highest, partial[i]);
  if (!BUG(8)) __syncthreads();  // 8: the array is used again below
  for (int i = thread; i < n; i += blockDim.x) sum += expf(row[i] - highest);
  for (int d = 16; d; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  if (lane == 0) partial[warp] = sum;
  __syncthreads();
  sum = 0;
  for (int i = 0; i < warps + BUG(10); ++i) sum += partial[i];  // 10: reads an unwritten slot
  for (int i = thread; i < n; i += blockDim.x) y[size_t(blockIdx.x) * n + i] = expf(row[i] - highest) / sum;
}

// Exchange inside a warp through shared memory.
__global__ void reverse_pairs(const float* x, float* y) {
  FD_SHARED(float, buffer, [64]);
  int thread = threadIdx.x;
  buffer[thread] = x[blockIdx.x * 64 + thread];
  if (!BUG(7)) __syncwarp();
  y[blockIdx.x * 64 + thread] = buffer[thread ^ 31];
}

// h[t + 1] = tanh(W h[t]) with a grid barrier a step.
__global__ void recurrence(const float* W, float* h, int H, int T) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  for (int t = 0; t < T; ++t) {
    if (i < H) {
      float sum = 0;
      for (int k = 0; k < H; ++k) sum += W[i * H + k] * h[t * H + k];
      h[(t + 1) * H + i] = tanhf(sum);
    }
    if (!BUG(9)) fd::grid_sync();
  }
}

// The same in one cluster: h lives in every block's shared memory, each block computes a slice and stores it
// to all.
__global__ void cluster_recurrence(const float* W, const float* h0, float* y, int H, int T) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  FD_SHARED(float, h, [2][128]);
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  for (int k = threadIdx.x; k < H; k += blockDim.x) h[0][k] = h0[k];
  if (BUG(24))  // stores into a block that may not have started
    __syncthreads();
  else
    fd::cluster_sync();
  for (int t = 0; t < T; ++t) {
    if (i < H) {
      float sum = 0;
      for (int k = 0; k < H; ++k) sum += W[i * H + k] * h[t & 1][k];
      sum = tanhf(sum);
      y[t * H + i] = sum;
      for (unsigned rank = 0; rank < fd::cluster_size(); ++rank)
        fd::cluster_map(&h[0][0], rank)[((t + 1) & 1) * 128 + i] = sum;
    }
    // 14: no barrier a step. 15: leaves while its neighbours still store into its shared memory.
    if (!(BUG(14) || (BUG(15) && t == T - 1))) fd::cluster_sync();
  }
#endif
}

// C[64, 64] = A[64, K] B[64, K]^T in bf16: cp.async double buffer, ldmatrix, mma.sync; four warps of 16 rows.
constexpr int kPaddedRow = 72;  // 64 + 8: rows start in different banks
__global__ void __launch_bounds__(128)
    tensor_product(const bf16* A, const bf16* B, float* C, int rows, int K) {
  FD_DYNAMIC_SHARED(bf16, shared);
  int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  auto load = [&](const bf16* from, int bound, int slot, int k0) {
    for (int i = thread; i < 64 * 8; i += 128) {
      int row = i >> 3, column = (i & 7) * 8;
      bool inside = row < bound || BUG(13);  // 13: rows not bounded
      fd::cp_async16(shared + (slot * 64 + row) * kPaddedRow + column,
                     from + size_t(inside ? row : 0) * K + k0 + column, inside);
    }
  };
  load(A, rows, 0, 0), load(B, 64, 1, 0);
  fd::cp_async_commit();
  float sums[8][4] = {};
  for (int step = 0; step < K / 64; ++step) {
    int now = step & 1, next = now ^ 1;
    if (step + 1 < K / 64)
      load(A, rows, 2 * next, (step + 1) * 64), load(B, 64, 2 * next + 1, (step + 1) * 64);
    fd::cp_async_commit();
    if (!BUG(5)) fd::cp_async_wait<1>();
    __syncthreads();
    const bf16 *a_tile = shared + 2 * now * 64 * kPaddedRow, *b_tile = a_tile + 64 * kPaddedRow;
    for (int k = 0; k < 64; k += 16) {
      uint32_t a[4];
      fd::ldmatrix_x4(a, a_tile + (warp * 16 + (lane & 15)) * kPaddedRow + k + (lane >> 4) * 8);
      for (int n = 0; n < 8; n += 2) {
        uint32_t b[4];
        fd::ldmatrix_x4(
            b, b_tile + (n * 8 + (lane & 7) + ((lane >> 4) << 3)) * kPaddedRow + k + ((lane >> 3) & 1) * 8);
        uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
        fd::mma<bf16>(sums[n], a, b0), fd::mma<bf16>(sums[n + 1], a, b1);
      }
    }
    if (!BUG(12)) __syncthreads();  // 12: the buffer is refilled while others read
  }
  fd::cp_async_wait<0>();
  for (int n = 0; n < 8; ++n)
    for (int i = 0; i < 4; ++i) {
      int row = warp * 16 + (lane >> 2) + 8 * (i >> 1);
      if (row < rows) C[row * 64 + n * 8 + (lane & 3) * 2 + (i & 1)] = sums[n][i];
    }
}

// One 16x8 tile per warp, fragments loaded by hand: A [16, K], B [8, K], fp16 or tf32.
template <class T>
__global__ void fragment_tile(const T* A, const T* B, float* C, int K) {
  constexpr int n = 4 / sizeof(T);  // elements in a register
  int lane = threadIdx.x, group = lane / 4, t = lane % 4;
  float d[4];
  if (!BUG(22)) d[0] = d[1] = d[2] = d[3] = 0;  // 22: registers not initialised
  for (int k0 = 0; k0 < K; k0 += 8 * n) {
    uint32_t a[4], b[2];
    for (int i = 0; i < 4; ++i) {
      int row = BUG(16) ? i >> 1 : i & 1, half = BUG(16) ? i & 1 : i >> 1;  // 16: registers 1 and 2 swapped
      a[i] = *reinterpret_cast<const uint32_t*>(A + (group + 8 * row) * K + k0 + t * n + 4 * n * half);
    }
    for (int i = 0; i < 2; ++i)
      b[i] = *reinterpret_cast<const uint32_t*>(B + group * K + k0 + t * n + 4 * n * i);
    fd::mma<T>(d, a, b);
  }
  for (int i = 0; i < 4; ++i) C[(group + 8 * (i >> 1)) * 8 + t * 2 + (i & 1)] = d[i];
}

// y = 2 x: a producer warp and consumer warps around a ring of two stages, bulk copies and mbarriers.
__global__ void ring(const float* x, float* y, int n) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  FD_DYNAMIC_SHARED(float, buffer);
  FD_SHARED(uint64_t, full, [2]);
  FD_SHARED(uint64_t, empty, [2]);
  int thread = threadIdx.x, steps = n / 64;
  if (thread == 0)
    for (int s = 0; s < 2; ++s) fd::mbarrier_init(full + s, 1), fd::mbarrier_init(empty + s, 64);
  __syncthreads();
  if (thread == 64) {
    for (int i = 0; i < steps; ++i) {
      int s = i & 1, phase = i >> 1 & 1;
      if (!BUG(17)) fd::mbarrier_wait(empty + s, phase ^ 1);  // 17: refills a stage that is being read
      fd::mbarrier_arrive(full + s, 64 * 4);
      fd::bulk_copy(buffer + s * 64, x + i * 64, 64 * 4, full + s);
    }
  } else if (thread < 64) {
    for (int i = 0; i < steps; ++i) {
      int s = i & 1, phase = i >> 1 & 1;
      if (!BUG(18)) fd::mbarrier_wait(full + s, phase);  // 18: reads before the copy is complete
      y[i * 64 + thread] = 2 * buffer[s * 64 + thread];
      fd::mbarrier_arrive(empty + s);
    }
  }
#endif
}

// The sum of everything: the last block to finish adds the partial sums.
__global__ void total(const float* x, float* partial, int* done, float* out, int n) {
  FD_SHARED(float, sum, [1]);
  FD_SHARED(int, last, [1]);
  if (threadIdx.x == 0) sum[0] = 0;
  __syncthreads();
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) {
    // 19: not atomic. 23: misaligned vector load.
    if (BUG(19))
      sum[0] += x[i];
    else
      atomicAdd(&sum[0], BUG(23) ? reinterpret_cast<const float2*>(x + i)->x : x[i]);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum[0];
    if (!BUG(20)) __threadfence();
    last[0] = atomicAdd(done, 1) == static_cast<int>(gridDim.x) - 1;
  }
  __syncthreads();
  if (last[0] && threadIdx.x == 0) {
    __threadfence();
    float r = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) r += partial[b];
    *out = r;
  }
}

// One element of each row of a matrix of more than 2^31 elements.
__global__ void column(const float* x, float* y, int rows, int stride) {
  int r = blockIdx.x * blockDim.x + threadIdx.x;
  if (r < rows) y[r] = BUG(21) ? x[r * stride] : x[size_t(r) * stride];  // 21: 32-bit offset
}

// Prefix sum over all blocks: each waits for the flag of the one before (cooperative launch). Also the other
// warp intrinsics and a named barrier.
__global__ void scan(const float* x, float* y, float* partial, int* flag) {
  FD_SHARED(float, sums, [65]);
  int thread = threadIdx.x, lane = thread & 31, block = blockIdx.x;
  float v = x[block * 64 + thread];
  for (int d = 1; d < 32; d <<= 1) {
    float u = __shfl_up_sync(0xffffffffu, v, d);
    if (lane >= d) v += u;
  }
  bool right = __ballot_sync(0xffffffffu, lane < 5) == 31u &&
               __shfl_sync(0xffffffffu, lane, 7, 16) == (lane & 16) + 7 &&
               __shfl_down_sync(0xffffffffu, lane, 3, 16) == ((lane & 15) < 13 ? lane + 3 : lane);
  if (!__all_sync(0xffffffffu, right) || __any_sync(0xffffffffu, !right)) v = NAN;
  sums[thread] = v;
  fd::named_barrier(1, 64);
  if (thread >= 32) v += sums[31];
  if (thread == 0) {
    while (block && !fd::ld_acquire(flag + block - 1)) fd::spin();
    sums[64] = block ? partial[block - 1] : 0.f;
    if (BUG(25)) fd::st_release(flag + block, 1);  // flag before data
    partial[block] = sums[64] + sums[31] + sums[63];
    if (!BUG(25)) fd::st_release(flag + block, 1);
  }
  if (BUG(27) && thread < 32)  // two halves of the block in two barriers
    __syncthreads();
  else
    __syncthreads();
  y[block * 64 + thread] = v + sums[64];
}

#include "warpgroup.cuh"
