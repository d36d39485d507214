// The diffusion step, its backward, and noise alone. Blocks of 256 threads stride over a sample (over the
// whole tensor where all samples share a row of the table), or a cluster of blocks has one where a step needs
// all of it first; 16 bytes of each tensor at a time. Saves nothing.
#include "ops/diffusion/diffusion_cuda.h"
#include "ops/diffusion/sample.cuh"

namespace fastdl::cuda {
namespace {

template <class T>
struct BackwardJob {
  using A = fd::Compute<T>;
  const DiffusionStepBackward& a;
  A c[kColumns];

  FD_DEVICE void start(int64_t sample) { load_coefficients(a.rows, sample, c); }

  template <int N>
  FD_DEVICE void take(int64_t at) {
    const int64_t half = a.samples * a.sample_size;
    A g_prev[N] = {}, g_x0[N] = {};
    if (a.grad_prev) load_elements<T>(a.grad_prev, at, g_prev);
    if (a.grad_x0) load_elements<T>(a.grad_x0, at, g_x0);
#pragma unroll
    for (int i = 0; i < N; ++i) g_x0[i] = multiply_add(c[kX0], g_prev[i], g_x0[i]);
    if (a.clipped) {
      A x[N], m[N] = {};
      load_elements<T>(a.sample, at, x);
      if (a.model_output) load_model<T>(a.model_output, a.guided, half, A(a.guidance), at, m);
      const A high = A(a.limit_value);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const A x_0 = multiply_add(c[kX0Model], m[i], c[kX0Sample] * x[i]);
        if (!(x_0 <= high && x_0 >= -high)) g_x0[i] = 0;
      }
    }
    store(a.grad_sample, at, c[kX0Sample], g_x0, c[kSample], g_prev);
    store(a.grad_history, at, A(0), g_x0, c[kHistory], g_prev);
    store(a.grad_noise, at, c[kX0Noise], g_x0, c[kNoise], g_prev);
    if (!a.guided) return store(a.grad_model, at, c[kX0Model], g_x0, c[kModel], g_prev);
    const A guidance = A(a.guidance), opposite = A(1.0 - a.guidance);
    store(a.grad_model, at, c[kX0Model], g_x0, c[kModel], g_prev, opposite);
    store(a.grad_model, half + at, c[kX0Model], g_x0, c[kModel], g_prev, guidance);
  }

  template <int N>
  FD_DEVICE void store(void* target, int64_t at, A of_x0, const A (&g_x0)[N], A of_prev, const A (&g_prev)[N],
                       A factor = A(1)) {
    if (!target) return;
    A g[N];
#pragma unroll
    for (int i = 0; i < N; ++i) g[i] = factor * multiply_add(of_x0, g_x0[i], of_prev * g_prev[i]);
    store_elements<T>(target, at, g);
  }
};

template <class T>
struct NoiseJob {
  const NormalNoise& a;

  FD_DEVICE void start(int64_t) {}

  template <int N>
  FD_DEVICE void take(int64_t at) {
    fd::Compute<T> n[N];
    made_noise(a.seed, at, n);
    store_elements<T>(a.output, at, n);
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 3) diffusion_step_kernel(DiffusionStep a, Elements e) {
  StepJob<T, false> job{a, {}, {1, fd::Compute<T>(a.limit_value), 1}};
  for_elements<T>(e, job);
}

template <class T>
__global__ void __launch_bounds__(kSampleThreads, 1)
    diffusion_step_sample_kernel(DiffusionStep a, Elements e) {
  const Share share = share_of_cluster();
  for (int64_t sample = blockIdx.y; sample < e.samples; sample += gridDim.y) {
    StepJob<T, true> job{a, {}, {1, fd::Compute<T>(a.limit_value), 1}};
    job.start(sample);
    job.plan = plan_of(a, e, sample, share, job);
    for_pieces<T>(e, sample, share, job);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    diffusion_step_backward_kernel(DiffusionStepBackward a, Elements e) {
  BackwardJob<T> job{a, {}};
  for_elements<T>(e, job);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3) normal_noise_kernel(NormalNoise a, Elements e) {
  NoiseJob<T> job{a};
  for_elements<T>(e, job);
}

// The second half of a guided output starts on a 16-byte boundary as well.
template <class T>
bool halves_aligned(bool guided, int64_t half) {
  return !guided || half % kWidth<T> == 0;
}

// Blocks for one sample: at most so many that each thread has a vector.
template <class T>
unsigned cluster_of(const Elements& e) {
  const unsigned most = fd::portable_cluster(diffusion_step_sample_kernel<T>);
  unsigned cluster = 1;
  while (cluster < most && e.size > int64_t{cluster} * kSampleThreads * kWidth<T>) cluster *= 2;
  return cluster;
}

template <class T>
cudaError_t step_with_sample(const DiffusionStep& a, bool aligned, cudaStream_t stream) {
  if (a.sample_size > UINT32_MAX) return cudaErrorInvalidValue;  // what a bin counts to
  const Elements e{a.samples, a.sample_size, aligned && (a.samples == 1 || a.sample_size % kWidth<T> == 0)};
  const unsigned cluster = cluster_of<T>(e), samples = static_cast<unsigned>(min(e.samples, int64_t{32768}));
  const fd::LaunchShape shape{dim3(cluster, samples), dim3(kSampleThreads), 0, false, cluster};
  return fd::launch(diffusion_step_sample_kernel<T>, shape, stream, a, e);
}

template <class T>
cudaError_t step(const DiffusionStep& a, cudaStream_t stream) {
  const bool aligned = halves_aligned<T>(a.guided, a.samples * a.sample_size) &&
                       all_aligned({a.sample, a.model_output, a.history, a.noise, a.prev, a.x_0});
  if (needs_sample(a) && a.samples * a.sample_size > 0) return step_with_sample<T>(a, aligned, stream);
  const Elements e = elements_of<T>(a.rows, a.samples, a.sample_size, aligned);
  if (e.samples == 0) return cudaSuccess;
  return fd::launch(diffusion_step_kernel<T>, {grid_of<T>(e), dim3(kThreads)}, stream, a, e);
}

template <class T>
cudaError_t step_backward(const DiffusionStepBackward& a, cudaStream_t stream) {
  const bool aligned = halves_aligned<T>(a.guided, a.samples * a.sample_size) &&
                       all_aligned({a.grad_prev, a.grad_x0, a.sample, a.model_output, a.grad_sample,
                                    a.grad_model, a.grad_history, a.grad_noise});
  const Elements e = elements_of<T>(a.rows, a.samples, a.sample_size, aligned);
  if (e.samples * e.size == 0) return cudaSuccess;
  return fd::launch(diffusion_step_backward_kernel<T>, {grid_of<T>(e), dim3(kThreads)}, stream, a, e);
}

template <class T>
cudaError_t noise(const NormalNoise& a, cudaStream_t stream) {
  const Elements e{1, a.count, all_aligned({a.output})};
  if (a.count == 0) return cudaSuccess;
  return fd::launch(normal_noise_kernel<T>, {grid_of<T>(e), dim3(kThreads)}, stream, a, e);
}

}  // namespace

cudaError_t diffusion_step(const DiffusionStep& a, cudaStream_t stream) {
  return fd::with_type(a.dtype, [&](auto element) { return step<decltype(element)>(a, stream); });
}

cudaError_t diffusion_step_backward(const DiffusionStepBackward& a, cudaStream_t stream) {
  return fd::with_type(a.dtype, [&](auto element) { return step_backward<decltype(element)>(a, stream); });
}

cudaError_t normal_noise(const NormalNoise& a, cudaStream_t stream) {
  return fd::with_type(a.dtype, [&](auto element) { return noise<decltype(element)>(a, stream); });
}

}  // namespace fastdl::cuda
