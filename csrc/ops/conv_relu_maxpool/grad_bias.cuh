// grad_bias[c]: the sum of the pooled gradients whose ReLU is open. Two stages, both in a fixed order.
// First stage: block (x, split) sums its share of the samples for one channel (NCHW), or of the pixels for up
// to
//   256 vectors of channels (channels_last), into partial[split][C]. Second stage: a thread adds a channel's
//   splits.
// Saves nothing. The number of splits depends on shapes alone, so that every GPU gives the same bits.
#pragma once
#include "common/cuda/reduce.cuh"
#include "ops/conv_relu_maxpool/bias_relu_maxpool_backward.cuh"

namespace fastdl::cuda {

template <class T>
struct BiasGradient {
  const T *grad_output, *output;
  const uint8_t* record;
  fd::Compute<T>* partial;
  T* grad_bias;
  int64_t sample;  // elements from one sample to the next
  int64_t N, plane;
  int C, offsets;  // a record byte below `offsets` is an open window
  int splits;
};

template <class T, int V>
FD_DEVICE void add_open(const BiasGradient<T>& p, int64_t at, fd::Compute<T> (&sum)[V]) {
  auto grad = fd::load_vector<V>(p.grad_output + at);
  if (p.record) {
    auto record = fd::load_vector<V>(p.record + at);
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (record.value[i] < p.offsets) sum[i] += fd::to_compute(grad.value[i]);
  } else {
    auto output = fd::load_vector<V>(p.output + at);
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (!(fd::to_compute(output.value[i]) <= 0)) sum[i] += fd::to_compute(grad.value[i]);
  }
}

// Grid (C, splits).
template <class T, int V>
__global__ void __launch_bounds__(kPassThreads) grad_bias_partial_kernel(BiasGradient<T> p) {
  fd::Compute<T> sum[V] = {};
  for (int64_t n = blockIdx.y; n < p.N; n += p.splits) {
    int64_t plane = n * p.sample + blockIdx.x * p.plane;
    for (int64_t i = threadIdx.x * V; i < p.plane; i += kPassThreads * V) add_open<T, V>(p, plane + i, sum);
  }
#pragma unroll
  for (int i = 1; i < V; ++i) sum[0] += sum[i];
  auto total = fd::block_sum<kPassThreads>(sum[0]);
  if (threadIdx.x == 0) p.partial[int64_t{blockIdx.y} * p.C + blockIdx.x] = total;
}

// Grid (ceil(C / V / columns), splits); a block is `columns` vectors of channels by 256 / columns pixels.
template <class T, int V>
__global__ void __launch_bounds__(kPassThreads)
    grad_bias_partial_channels_last_kernel(BiasGradient<T> p, int columns) {
  FD_SHARED(fd::Compute<T>, sums, [kPassThreads * V]);
  int rows = kPassThreads / columns, row = threadIdx.x / columns, column = threadIdx.x % columns;
  int c = (blockIdx.x * columns + column) * V;
  fd::Compute<T> sum[V] = {};
  if (row < rows && c < p.C)
    for (int64_t i = int64_t{blockIdx.y} * rows + row; i < p.N * p.plane; i += int64_t{p.splits} * rows) {
      int64_t n = i / p.plane;
      add_open<T, V>(p, n * p.sample + (i - n * p.plane) * p.C + c, sum);
    }
  // [V][threads]: consecutive threads in consecutive banks.
#pragma unroll
  for (int i = 0; i < V; ++i) sums[i * kPassThreads + threadIdx.x] = sum[i];
  __syncthreads();
  if (row > 0 || c >= p.C) return;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    for (int r = 1; r < rows; ++r) sum[i] += sums[i * kPassThreads + r * columns + column];
    p.partial[int64_t{blockIdx.y} * p.C + c + i] = sum[i];
  }
}

template <class T>
__global__ void __launch_bounds__(kPassThreads) grad_bias_kernel(BiasGradient<T> p) {
  int c = blockIdx.x * kPassThreads + threadIdx.x;
  if (c >= p.C) return;
  fd::Compute<T> sum = 0;
  for (int split = 0; split < p.splits; ++split) sum += p.partial[int64_t{split} * p.C + c];
  p.grad_bias[c] = fd::from_compute<T>(sum);
}

}  // namespace fastdl::cuda
