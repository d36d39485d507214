// The cells, elementwise: what a unit makes of its projected input and of its recurrent product, and back.
// Arithmetic in float or double; formulas in fastdl/ops/rnn/reference.py.
#pragma once
#include "common/cuda/device.cuh"
#include "ops/rnn/rnn.h"

namespace fastdl::cuda {

// num_gates() for kernels.
FD_DEVICE int gates_of(Cell cell) { return cell == Cell::kLstm ? 4 : cell == Cell::kGru ? 3 : 1; }

FD_DEVICE float exponential(float x) { return expf(x); }
FD_DEVICE double exponential(double x) { return exp(x); }
FD_DEVICE float hyperbolic_tangent(float x) { return tanhf(x); }
FD_DEVICE double hyperbolic_tangent(double x) { return tanh(x); }
template <class A>
FD_DEVICE A sigmoid(A x) {
  return A(1) / (A(1) + exponential(-x));
}

// p_i, p_f, p_o; zero without peepholes.
template <class A>
struct Peephole {
  A i, f, o;
};

// h: before projection and zoneout. saved: i f g o; r z n and the recurrent half of n; or h.
template <class A>
struct CellValue {
  A h, c, saved[4];
};

// u: the recurrent product with its bias. gx: the projected input.
template <class A>
FD_DEVICE CellValue<A> cell_forward(Cell, const A (&gx)[4], const A (&u)[4], A, A c_old,
                                    const Peephole<A>& p) {
  const A i = sigmoid(gx[0] + u[0] + p.i * c_old), f = sigmoid(gx[1] + u[1] + p.f * c_old),
          g = hyperbolic_tangent(gx[2] + u[2]), c = f * c_old + i * g, o = sigmoid(gx[3] + u[3] + p.o * c);
  return {o * hyperbolic_tangent(c), c, {i, f, g, o}};
}
template <class A>
FD_DEVICE CellValue<A> cell_forward(Cell, const A (&gx)[3], const A (&u)[3], A h_old, A, const Peephole<A>&) {
  const A r = sigmoid(gx[0] + u[0]), z = sigmoid(gx[1] + u[1]), n = hyperbolic_tangent(gx[2] + r * u[2]);
  return {(A(1) - z) * n + z * h_old, A(0), {r, z, n, u[2]}};
}
template <class A>
FD_DEVICE CellValue<A> cell_forward(Cell cell, const A (&gx)[1], const A (&u)[1], A, A, const Peephole<A>&) {
  const A x = gx[0] + u[0];
  // As torch's relu: NaN passes.
  const A h = cell == Cell::kRnnTanh ? hyperbolic_tangent(x) : x < A(0) ? A(0) : x;
  return {h, A(0), {h, A(0), A(0), A(0)}};
}

// gates: of the projected input, in the order of weight_hh's rows. u_n: the gru's third of the recurrent
// product. h_old, c_old: what the cell itself hands back to the states before.
template <class A>
struct CellGradient {
  A gates[4], u_n, h_old, c_old;
};

// dc: of c', what comes through h' included. shown: the tanh that o multiplies.
template <class A>
FD_DEVICE CellGradient<A> lstm_backward(const A (&saved)[4], A dh, A dc, A c_old, A shown,
                                        const Peephole<A>& p) {
  const A i = saved[0], f = saved[1], g = saved[2], o = saved[3];
  const A d_o = dh * shown * o * (A(1) - o);
  dc += d_o * p.o;
  const A d_i = dc * g * i * (A(1) - i), d_f = dc * c_old * f * (A(1) - f), d_g = dc * i * (A(1) - g * g);
  return {{d_i, d_f, d_g, d_o}, A(0), A(0), dc * f + d_i * p.i + d_f * p.f};
}
template <class A>
FD_DEVICE CellGradient<A> gru_backward(const A (&saved)[4], A dh, A h_old) {
  const A r = saved[0], z = saved[1], n = saved[2], u_n = saved[3];
  const A d_n = dh * (A(1) - z) * (A(1) - n * n), d_z = dh * (h_old - n) * z * (A(1) - z),
          d_r = d_n * u_n * r * (A(1) - r);
  return {{d_r, d_z, d_n, A(0)}, d_n * r, dh * z, A(0)};
}
template <class A>
FD_DEVICE CellGradient<A> plain_backward(Cell cell, A h, A dh) {
  const A d = cell == Cell::kRnnTanh ? dh * (A(1) - h * h) : h > A(0) ? dh : A(0);
  return {{d, A(0), A(0), A(0)}, A(0), A(0), A(0)};
}

}  // namespace fastdl::cuda
