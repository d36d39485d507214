// x_0 and the result of a step, some elements at a time.
#pragma once
#include "ops/diffusion/elements.cuh"

namespace fastdl::cuda {

// As in sample-inl.h.
template <class A>
struct SamplePlan {
  A scale;   // of the guided model output
  A limit;   // x_0 is clamped to [-limit, limit]
  A divide;  // and divided by this
};

// u + guidance (c - u), and c; c begins `half` elements behind u.
template <class T, int N>
FD_DEVICE void load_guided(const void* model, int64_t half, fd::Compute<T> guidance, int64_t at,
                           fd::Compute<T> (&m)[N], fd::Compute<T> (&conditional)[N]) {
  load_elements<T>(model, at, m);
  load_elements<T>(model, half + at, conditional);
#pragma unroll
  for (int i = 0; i < N; ++i) m[i] = multiply_add(guidance, conditional[i] - m[i], m[i]);
}

// The same, or the model's output.
template <class T, int N>
FD_DEVICE void load_model(const void* model, bool guided, int64_t half, fd::Compute<T> guidance, int64_t at,
                          fd::Compute<T> (&m)[N]) {
  fd::Compute<T> conditional[N];
  if (guided)
    load_guided<T>(model, half, guidance, at, m, conditional);
  else
    load_elements<T>(model, at, m);
}

// kWhole: the sample has a plan of its own. Without one the model's output is not scaled, nor x_0 divided.
template <class T, bool kWhole>
struct StepJob {
  using A = fd::Compute<T>;
  const DiffusionStep& a;
  A c[kColumns];
  SamplePlan<A> plan;

  FD_DEVICE void start(int64_t sample) {
    load_coefficients(a.rows, sample, c);
    const bool own_value = sample == 0 || (a.rows.row_of && a.rows.row_stride);
    if (a.value && own_value && blockIdx.x == 0 && threadIdx.x == 0)
      a.value[sample] = static_cast<float>(c[kValue]);
  }

  template <int N>
  FD_DEVICE void load_scaled_model(int64_t at, A (&m)[N]) {
    if (!a.model_output) return;
    load_model<T>(a.model_output, a.guided, a.samples * a.sample_size, A(a.guidance), at, m);
#pragma unroll
    for (int i = 0; kWhole && i < N; ++i) m[i] *= plan.scale;
  }

  template <int N>
  FD_DEVICE void load_noise(int64_t at, A (&n)[N]) {
    if (a.noise)
      load_elements<T>(a.noise, at, n);
    else if (a.seed)
      made_noise(a.seed, at, n);
  }

  // Before it is limited.
  FD_DEVICE A raw_x_0(A x, A m, A n) {
    return multiply_add(c[kX0Noise], n, multiply_add(c[kX0Model], m, c[kX0Sample] * x));
  }

  FD_DEVICE A limited(A x_0) {
    if (a.limit != Limit::kNone) x_0 = x_0 < -plan.limit ? -plan.limit : x_0 > plan.limit ? plan.limit : x_0;
    return kWhole && a.limit == Limit::kThreshold ? x_0 / plan.divide : x_0;
  }

  template <int N>
  FD_DEVICE void take(int64_t at) {
    A x[N], m[N] = {}, n[N] = {}, h[N] = {};
    load_elements<T>(a.sample, at, x);
    load_scaled_model(at, m);
    load_noise(at, n);
    if (a.history) load_elements<T>(a.history, at, h);
    A x_0[N], prev[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      x_0[i] = limited(raw_x_0(x[i], m[i], n[i]));
      const A v = multiply_add(c[kModel], m[i], multiply_add(c[kX0], x_0[i], c[kSample] * x[i]));
      prev[i] = multiply_add(c[kHistory], h[i], multiply_add(c[kNoise], n[i], v));
    }
    if (a.x_0) store_elements<T>(a.x_0, at, x_0);
    if (a.prev) store_elements<T>(a.prev, at, prev);
  }
};

}  // namespace fastdl::cuda
