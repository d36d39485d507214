// What needs a whole sample before its first element is done: the rescale of guidance, and the threshold.
#pragma once
#include "ops/diffusion/quantile.cuh"

namespace fastdl::cuda {

inline bool needs_sample(const DiffusionStep& a) {
  return a.limit == Limit::kThreshold || (a.guided && a.rescale != 0);
}

// Sums of the conditional and of the guided output's deviations from `mean`, or of their squares.
template <class T, bool kSquares>
struct MomentJob {
  using A = fd::Compute<T>;
  const DiffusionStep& a;
  A mean[2], sum[2];

  template <int N>
  FD_DEVICE void take(int64_t at) {
    A m[N], c[N];
    load_guided<T>(a.model_output, a.samples * a.sample_size, A(a.guidance), at, m, c);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const A d_c = c[i] - mean[0], d_m = m[i] - mean[1];
      sum[0] = kSquares ? multiply_add(d_c, d_c, sum[0]) : sum[0] + d_c;
      sum[1] = kSquares ? multiply_add(d_m, d_m, sum[1]) : sum[1] + d_m;
    }
  }
};

template <bool kSquares, class T>
FD_DEVICE void moments(const DiffusionStep& a, const Elements& e, int64_t sample, const Share& share,
                       fd::Compute<T> (&mean)[2], double (&total)[2]) {
  MomentJob<T, kSquares> job{a, {mean[0], mean[1]}, {0, 0}};
  for_pieces<T>(e, sample, share, job);
  total[0] = job.sum[0], total[1] = job.sum[1];
  combine_in_cluster(total, [](double v, double w) { return v + w; });
}

// phi std(c) / std(m) + 1 - phi: means first, then squared deviations.
template <class T>
FD_DEVICE double rescale_of(const DiffusionStep& a, const Elements& e, int64_t sample, const Share& share) {
  using A = fd::Compute<T>;
  if (e.size < 2) return 1.0;
  A mean[2] = {};
  double total[2];
  moments<false, T>(a, e, sample, share, mean, total);
#pragma unroll
  for (int k = 0; k < 2; ++k) mean[k] = A(total[k] / static_cast<double>(e.size));
  moments<true, T>(a, e, sample, share, mean, total);
  // No deviation: the ratio is 1. NaN stays.
  const double ratio = total[1] > 0 ? sqrt(total[0] / total[1]) : total[1] == 0 ? 1.0 : total[1];
  return a.rescale * ratio + (1.0 - a.rescale);
}

// The sample's threshold: the quantile of |x_0|, between 1 and the largest; NaN if any x_0 is.
template <class T>
FD_DEVICE fd::Compute<T> threshold_of(const Elements& e, int64_t sample, const Share& share,
                                      StepJob<T, true>& step) {
  using A = fd::Compute<T>;
  const A s = quantile<T>(e, sample, share, step), most(step.a.limit_value > 1 ? step.a.limit_value : 1.0);
  return s < 1 ? A(1) : s > most ? most : s;
}

template <class T>
FD_DEVICE SamplePlan<fd::Compute<T>> plan_of(const DiffusionStep& a, const Elements& e, int64_t sample,
                                             const Share& share, StepJob<T, true>& step) {
  if (a.guided && a.rescale != 0) step.plan.scale = fd::Compute<T>(rescale_of<T>(a, e, sample, share));
  if (a.limit == Limit::kThreshold)
    step.plan.limit = step.plan.divide = threshold_of<T>(e, sample, share, step);
  return step.plan;
}

}  // namespace fastdl::cuda
