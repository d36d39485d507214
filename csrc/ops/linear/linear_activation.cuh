// output = dropout(activation(pre)), and backward grad_pre with the bias gradient's first stage.
// Forward: a thread makes four consecutive elements, one counter of Philox. Backward: a block walks the rows
// of one part for 16 vectors of columns, 16 rows at a time, and adds up its columns in shared memory. Saves
// nothing: the mask is drawn again from the seed. The number of parts depends on shapes alone.
#pragma once
#include "common/cuda/activation.cuh"
#include "common/cuda/scalar.cuh"
#include "common/philox.h"
#include "ops/linear/linear.h"

namespace fastdl::cuda {

constexpr int kActivationThreads = 256, kSide = 16;

// grad * activation'; `saved` is the output, or for gelu and silu its input.
template <Activation kActivation, class C>
FD_DEVICE C activate_backward(C grad, C saved) {
  constexpr C kSqrtHalf = C(0.70710678118654752440), kSqrtTwoOverPi = C(0.79788456080286535588);
  if constexpr (kActivation == Activation::kRelu) return saved <= C(0) ? C(0) : grad;
  if constexpr (kActivation == Activation::kTanh) return grad * (C(1) - saved * saved);
  if constexpr (kActivation == Activation::kSigmoid) return grad * (saved * (C(1) - saved));
  if constexpr (kActivation == Activation::kSilu) {
    const C s = sigmoid(saved);
    return grad * (s * (C(1) + saved * (C(1) - s)));
  }
  if constexpr (kActivation == Activation::kGelu) {
    const C density = exp(C(-0.5) * saved * saved) * (C(0.5) * kSqrtTwoOverPi);
    return grad * (C(0.5) * (C(1) + erf(saved * kSqrtHalf)) + saved * density);
  }
  if constexpr (kActivation == Activation::kGeluTanh) {
    const C square = saved * saved, t = tanh(kSqrtTwoOverPi * (saved + C(0.044715) * square * saved));
    const C slope = kSqrtTwoOverPi * (C(1) + C(3 * 0.044715) * square);
    return grad * (C(0.5) * (C(1) + t) + C(0.5) * saved * (C(1) - t * t) * slope);
  }
  return grad;
}

// The words of elements 4 group to 4 group + 3.
FD_DEVICE PhiloxWords dropout_words(int64_t group, const int64_t* seed) {
  return philox({{static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), 0, 0}},
                static_cast<uint64_t>(*seed));
}

// word[which], without the local memory that an index known only at run time would take.
FD_DEVICE uint32_t pick(const PhiloxWords& words, int which) {
  const uint32_t low = which & 1 ? words.word[1] : words.word[0],
                 high = which & 1 ? words.word[3] : words.word[2];
  return which & 2 ? high : low;
}

template <class T>
struct ActivationPass {
  const T* pre;
  T* output;
  int64_t count;
  const int64_t* seed;  // null without dropout
  uint32_t threshold;
  fd::Compute<T> scale;
};

// kVectors: pre and output are aligned to four elements.
template <class T, Activation kActivation, bool kVectors>
__global__ void __launch_bounds__(kActivationThreads) linear_activation_kernel(ActivationPass<T> p) {
  using C = fd::Compute<T>;
  const int64_t group = int64_t{blockIdx.x} * kActivationThreads + threadIdx.x, first = 4 * group;
  if (first >= p.count) return;
  PhiloxWords words{};
  if (p.seed) words = dropout_words(group, p.seed);
  const bool whole = kVectors && first + 4 <= p.count;
  fd::Vector<T, 4> v{};
  if (whole) {
    v = fd::load_vector<4>(p.pre + first);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (first + i < p.count) v.value[i] = p.pre[first + i];
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    C y = activate<kActivation>(fd::to_compute(v.value[i]));
    if (p.seed) y = words.word[i] < p.threshold ? C(0) : y * p.scale;
    v.value[i] = fd::from_compute<T>(y);
  }
  if (whole) {
    fd::store_vector<4>(p.output + first, v);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (first + i < p.count) p.output[first + i] = v.value[i];
  }
}

template <class T>
struct ActivationPassBackward {
  const T *grad_output, *saved;
  T *grad_pre, *grad_bias;
  fd::Compute<T>* partial;  // [parts, N], null where no bias gradient is wanted
  int64_t M, N, rows_per_part;
  int parts;
  const int64_t* seed;
  uint32_t threshold;
  fd::Compute<T> scale, keep;
};

// Grid (ceil(N / V / 16), parts). V is 4 where N is a multiple of 4 and everything is aligned, else 1
// (float64: 1).
template <class T, Activation kActivation, int V>
__global__ void __launch_bounds__(kActivationThreads)
    linear_activation_backward_kernel(ActivationPassBackward<T> p) {
  using C = fd::Compute<T>;
  FD_SHARED(C, sums, [kSide * kSide * V]);
  const int lane = threadIdx.x % kSide, side = threadIdx.x / kSide;
  const int64_t column = (int64_t{blockIdx.x} * kSide + lane) * V;
  const int64_t begin = blockIdx.y * p.rows_per_part;
  const int64_t end = begin + p.rows_per_part < p.M ? begin + p.rows_per_part : p.M;
  constexpr bool kByOutput = kActivation == Activation::kTanh || kActivation == Activation::kSigmoid;
  C sum[V] = {};
  if (column < p.N)
    for (int64_t row = begin + side; row < end; row += kSide) {
      const int64_t at = row * p.N + column;
      fd::Vector<T, V> grad = fd::load_vector<V>(p.grad_output + at), saved{};
      if constexpr (kActivation != Activation::kNone) saved = fd::load_vector<V>(p.saved + at);
      PhiloxWords words{};
      if (p.seed) words = dropout_words(at / 4, p.seed);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        C y = fd::to_compute(saved.value[i]);
        if (kByOutput && p.seed) y *= p.keep;
        C g = activate_backward<kActivation>(C(fd::to_compute(grad.value[i])), y);
        const uint32_t word = V == 4 ? words.word[i] : pick(words, static_cast<int>(at % 4));
        if (p.seed) g = word < p.threshold ? C(0) : g * p.scale;
        grad.value[i] = fd::from_compute<T>(g);
        sum[i] += g;
      }
      fd::store_vector<V>(p.grad_pre + at, grad);
    }
  if (!p.partial) return;
#pragma unroll
  for (int i = 0; i < V; ++i) sums[(i * kSide + side) * kSide + lane] = sum[i];
  __syncthreads();
  if (side > 0 || column >= p.N) return;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    C total = 0;
    for (int s = 0; s < kSide; ++s) total += sums[(i * kSide + s) * kSide + lane];
    p.partial[blockIdx.y * p.N + column + i] = total;
  }
}

template <class T>
__global__ void __launch_bounds__(kActivationThreads) linear_grad_bias_kernel(ActivationPassBackward<T> p) {
  const int64_t column = int64_t{blockIdx.x} * kActivationThreads + threadIdx.x;
  if (column >= p.N) return;
  fd::Compute<T> sum = 0;
  for (int part = 0; part < p.parts; ++part) sum += p.partial[part * p.N + column];
  p.grad_bias[column] = fd::from_compute<T>(sum);
}

}  // namespace fastdl::cuda
