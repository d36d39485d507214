// The diffusion step, its backward, and noise alone. Blocks of 256 threads stride over a sample (over the
// whole tensor where all samples share a row of the table), 16 bytes of each tensor at a time. Saves nothing.
#include "ops/diffusion/diffusion_cuda.h"
#include "ops/diffusion/elements.cuh"

namespace fastdl::cuda {
namespace {

// u + guidance (c - u), or the model's output.
template <class T, int N>
FD_DEVICE void load_model(const void* model, bool guided, int64_t half, fd::Compute<T> guidance, int64_t at,
                          fd::Compute<T> (&m)[N]) {
  load_elements<T>(model, at, m);
  if (!guided) return;
  fd::Compute<T> conditional[N];
  load_elements<T>(model, half + at, conditional);
#pragma unroll
  for (int i = 0; i < N; ++i) m[i] = multiply_add(guidance, conditional[i] - m[i], m[i]);
}

template <class T>
struct StepJob {
  using A = fd::Compute<T>;
  const DiffusionStep& a;
  A c[kColumns];

  FD_DEVICE void start(int64_t sample) {
    load_coefficients(a.rows, sample, c);
    if (a.value && blockIdx.x == 0 && threadIdx.x == 0) a.value[sample] = static_cast<float>(c[kValue]);
  }

  template <int N>
  FD_DEVICE void take(int64_t at) {
    A x[N], m[N] = {}, n[N] = {}, h[N] = {};
    load_elements<T>(a.sample, at, x);
    if (a.model_output)
      load_model<T>(a.model_output, a.guided, a.samples * a.sample_size, A(a.guidance), at, m);
    if (a.noise)
      load_elements<T>(a.noise, at, n);
    else if (a.seed)
      made_noise(a.seed, at, n);
    if (a.history) load_elements<T>(a.history, at, h);
    A x_0[N], prev[N];
    const A high = A(a.limit_value);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      A v = multiply_add(c[kX0Noise], n[i], multiply_add(c[kX0Model], m[i], c[kX0Sample] * x[i]));
      if (a.limit == Limit::kClip) v = v < -high ? -high : v > high ? high : v;
      x_0[i] = v;
      v = multiply_add(c[kModel], m[i], multiply_add(c[kX0], v, c[kSample] * x[i]));
      prev[i] = multiply_add(c[kHistory], h[i], multiply_add(c[kNoise], n[i], v));
    }
    if (a.x_0) store_elements<T>(a.x_0, at, x_0);
    if (a.prev) store_elements<T>(a.prev, at, prev);
  }
};

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
  StepJob<T> job{a, {}};
  for_elements<T>(e, job);
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

template <class T>
cudaError_t step(const DiffusionStep& a, cudaStream_t stream) {
  const bool aligned = halves_aligned<T>(a.guided, a.samples * a.sample_size) &&
                       all_aligned({a.sample, a.model_output, a.history, a.noise, a.prev, a.x_0});
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
  if (a.limit == Limit::kThreshold || (a.guided && a.rescale != 0)) return cudaErrorNotSupported;
  return fd::with_type(a.dtype, [&](auto element) { return step<decltype(element)>(a, stream); });
}

cudaError_t diffusion_step_backward(const DiffusionStepBackward& a, cudaStream_t stream) {
  return fd::with_type(a.dtype, [&](auto element) { return step_backward<decltype(element)>(a, stream); });
}

cudaError_t normal_noise(const NormalNoise& a, cudaStream_t stream) {
  return fd::with_type(a.dtype, [&](auto element) { return noise<decltype(element)>(a, stream); });
}

}  // namespace fastdl::cuda
