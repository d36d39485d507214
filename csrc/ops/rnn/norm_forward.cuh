// A step forward with layer norm: normalises the recurrent product of a row over all gates, then the cell; an
// lstm
//   normalises c as well.
// A block of 256 threads makes one row of one direction. Grid (rows, directions).
// Saves for backward: the normalised product behind the gates, and its factor.
#pragma once
#include "common/cuda/reduce.cuh"
#include "ops/rnn/step_forward.cuh"

namespace fastdl::cuda {

constexpr int kNormThreads = 256;
constexpr double kNormEpsilon = 1e-5;  // of fastdl/ops/rnn/reference.py

// The sum over the block, for every thread.
template <class A>
FD_DEVICE A row_sum(A v) {
  FD_SHARED(A, total, [1]);
  v = fd::block_sum<kNormThreads>(v);
  if (threadIdx.x == 0) total[0] = v;
  __syncthreads();
  v = total[0];
  __syncthreads();
  return v;
}
FD_DEVICE float reciprocal_root(float v) { return 1 / sqrtf(v); }
FD_DEVICE double reciprocal_root(double v) { return 1 / sqrt(v); }

// Mean and 1 / standard deviation of n values.
template <class A, class Value>
FD_DEVICE void row_moments(int64_t n, A& mean, A& rstd, Value value) {
  A sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kNormThreads) sum += value(i);
  mean = row_sum(sum) / static_cast<A>(n);
  A squares = 0;
  for (int64_t i = threadIdx.x; i < n; i += kNormThreads) squares += (value(i) - mean) * (value(i) - mean);
  rstd = reciprocal_root(row_sum(squares) / static_cast<A>(n) + static_cast<A>(kNormEpsilon));
}

template <class T, int kGates>
__global__ void __launch_bounds__(kNormThreads)
    norm_forward_kernel(const __grid_constant__ ForwardStep<T> f) {
  using A = fd::Compute<T>;
  const RnnForward& p = f.p;
  const RnnSequence& q = p.q;
  const int64_t b = blockIdx.x, H = q.H;
  const int d = blockIdx.y;
  const Step& step = f.step[d];
  if (b >= step.at.count) return;
  const int64_t row = step.row(step.at, b);
  const int own = own_saved_width(q.s.cell);
  T* normalised =
      p.gates ? columns(static_cast<T*>(p.gates), q, d, row, (own + kGates) * H) + own * H : nullptr;
  if (!active(q, step.at, b)) {
    for (int64_t j = threadIdx.x; j < H; j += kNormThreads) {
      ForwardUnit<T, kGates>(f, d, b, j).clear_cell();
      for (int g = 0; g < kGates && normalised; ++g) normalised[g * H + j] = fd::from_compute<T>(0);
    }
    if (p.rstd && threadIdx.x == 0) static_cast<A*>(p.rstd)[row * q.s.directions + d] = A(0);
    return;
  }
  A* u = f.product + (d * q.rows.B + b) * kGates * H;
  const T* weight = static_cast<const T*>(q.weights[d].weight_norm_hh);
  A mean, rstd;
  row_moments(kGates * H, mean, rstd, [&](int64_t i) { return u[i]; });
  if (p.rstd && threadIdx.x == 0) static_cast<A*>(p.rstd)[row * q.s.directions + d] = rstd;
  for (int64_t j = threadIdx.x; j < H; j += kNormThreads) {
    A scaled[kGates];
#pragma unroll
    for (int g = 0; g < kGates; ++g) {
      const A value = (u[g * H + j] - mean) * rstd;
      if (normalised) normalised[g * H + j] = fd::from_compute<T>(value);
      scaled[g] = value * fd::to_compute(weight[g * H + j]);
    }
    const ForwardUnit<T, kGates> unit(f, d, b, j);
    const CellValue<A> value = unit.cell(scaled);
    if constexpr (kGates == 4) {
      // Read again by this thread alone, once c is normalised.
      u[j] = value.saved[3], u[H + j] = value.c;
      unit.save(value.saved, unit.keep_c(value.c));
    } else {
      unit.finish(value);
    }
  }
  if constexpr (kGates == 4) {
    const T *weight_c = static_cast<const T*>(q.weights[d].weight_norm_c),
            *bias_c = static_cast<const T*>(q.weights[d].bias_norm_c);
    row_moments(H, mean, rstd, [&](int64_t i) { return u[H + i]; });
    for (int64_t j = threadIdx.x; j < H; j += kNormThreads) {
      const A shown = (u[H + j] - mean) * rstd * fd::to_compute(weight_c[j]) + fd::to_compute(bias_c[j]);
      const ForwardUnit<T, kGates> unit(f, d, b, j);
      const A h = u[j] * hyperbolic_tangent(shown);
      if (q.s.has_projection)
        *unit.hidden() = fd::from_compute<T>(h);
      else
        unit.put_h(h);
    }
  }
}

}  // namespace fastdl::cuda
