// A step backward with layer norm: the cell, an lstm's normalised c, then the normalised recurrent product of
// a row. A block of 256 threads makes one row of one direction. Grid (rows, directions). Saves nothing.
#pragma once
#include "ops/rnn/norm_forward.cuh"
#include "ops/rnn/step_backward.cuh"

namespace fastdl::cuda {

// The vector-Jacobian product of the normalisation, of n values of a row.
template <class A, class Grad, class Normalised, class To>
FD_DEVICE void norm_gradient(int64_t n, A rstd, Grad grad, Normalised normalised, To to) {
  A sum = 0, along = 0;
  for (int64_t i = threadIdx.x; i < n; i += kNormThreads) sum += grad(i), along += grad(i) * normalised(i);
  sum = row_sum(sum) / static_cast<A>(n);
  along = row_sum(along) / static_cast<A>(n);
  for (int64_t i = threadIdx.x; i < n; i += kNormThreads)
    to(i, (grad(i) - sum - normalised(i) * along) * rstd);
}

template <class T>
__global__ void __launch_bounds__(kNormThreads)
    norm_backward_kernel(const __grid_constant__ BackwardStep<T> f) {
  using A = fd::Compute<T>;
  const RnnBackward& p = f.p;
  const RnnSequence& q = p.q;
  const int64_t b = blockIdx.x, H = q.H;
  const int d = blockIdx.y, gates = gates_of(q.s.cell), own = own_saved_width(q.s.cell);
  const Step& step = f.step[d];
  if (b >= step.at.count) return;
  const bool lstm = q.s.cell == Cell::kLstm;
  const int64_t row = step.row(step.at, b), n = gates * H;
  T* grad_hh = columns(static_cast<T*>(p.grad_gates_hh), q, d, row, n);
  T* grad_norm_c = lstm ? columns(static_cast<T*>(p.grad_norm_c), q, d, row, H) : nullptr;
  if (!active(q, step.at, b)) {
    for (int64_t j = threadIdx.x; j < n; j += kNormThreads) grad_hh[j] = fd::from_compute<T>(0);
    for (int64_t j = threadIdx.x; j < H; j += kNormThreads) {
      BackwardUnit<T>(f, d, b, j).clear();
      if (lstm) grad_norm_c[j] = fd::from_compute<T>(0);
    }
    return;
  }
  // Every element of it is written and read by one thread.
  A* u = f.grad_product + (d * q.rows.B + b) * n;
  const RnnWeights& w = q.weights[d];
  const T *weight_c = static_cast<const T*>(w.weight_norm_c), *bias_c = static_cast<const T*>(w.bias_norm_c);
  A mean_c = 0, rstd_c = 0;
  auto new_c = [&](int64_t j) {
    A saved[4];
    const BackwardUnit<T> unit(f, d, b, j);
    unit.saved(saved);
    return saved[1] * unit.c_old() + saved[0] * saved[2];
  };
  auto normal_c = [&](int64_t j) { return (new_c(j) - mean_c) * rstd_c; };
  auto shown = [&](int64_t j) {
    return hyperbolic_tangent(normal_c(j) * fd::to_compute(weight_c[j]) + fd::to_compute(bias_c[j]));
  };
  if (lstm) {
    row_moments(H, mean_c, rstd_c, new_c);
    // The gradient of tanh's argument, then of c' through its norm, in the first H of u.
    auto through_tanh = [&](int64_t j) {
      A saved[4];
      const BackwardUnit<T> unit(f, d, b, j);
      unit.saved(saved);
      const A s = shown(j);
      return *unit.grad_hidden() * saved[3] * (A(1) - s * s);
    };
    for (int64_t j = threadIdx.x; j < H; j += kNormThreads)
      grad_norm_c[j] = fd::from_compute<T>(through_tanh(j));
    norm_gradient(
        H, rstd_c, [&](int64_t j) { return through_tanh(j) * fd::to_compute(weight_c[j]); }, normal_c,
        [&](int64_t j, A grad) { u[j] = grad; });
  }
  const T* weight = static_cast<const T*>(w.weight_norm_hh);
  for (int64_t j = threadIdx.x; j < H; j += kNormThreads) {
    const BackwardUnit<T> unit(f, d, b, j);
    const A dh = *unit.grad_hidden();
    A saved[4];
    CellGradient<A> grad;
    unit.saved(saved);
    if (lstm)
      grad = lstm_backward(saved, dh, unit.unzoned_c() + u[j], unit.c_old(), shown(j), unit.peephole());
    else
      grad = unit.cell(dh);
    unit.put_gates(grad);
    unit.put_states(grad);
    if (q.s.cell == Cell::kGru) grad.gates[2] = grad.u_n;
#pragma unroll
    for (int g = 0; g < 4; ++g)
      if (g < gates) u[g * H + j] = grad.gates[g] * fd::to_compute(weight[g * H + j]);
  }
  // Sums over all gates from here on read elements of other threads.
  __syncthreads();
  const T* normalised = columns(static_cast<const T*>(p.gates), q, d, row, (own + gates) * H) + own * H;
  norm_gradient(
      n, static_cast<const A*>(p.rstd)[row * q.s.directions + d], [&](int64_t i) { return u[i]; },
      [&](int64_t i) { return fd::to_compute(normalised[i]); },
      [&](int64_t i, A grad) { grad_hh[i] = fd::from_compute<T>(grad); });
}

}  // namespace fastdl::cuda
