// A step backward: dh = W_hh^T grad_gates of the step that follows, then the cell, in one launch; layer norm
// and
//   projection add one each.
// How work is split: step_product.cuh over transposed weights; layer norm: a block a row (norm_backward.cuh).
// Saves nothing; dh without its product part and dc are kept from step to step.
#pragma once
#include "ops/rnn/step_forward.cuh"

namespace fastdl::cuda {

template <class T>
struct BackwardStep {
  RnnBackward p;
  Step step[2];        // by direction; `after` is the step whose gradients are there already
  int64_t rows[2];     // to bring up to date: of `at` and of `after`
  int64_t steps_left;  // 0: what is left is the gradient of h_0
  const T *weight_hh[2], *weight_hr[2];  // transposed: [R, G * H], [H, R]
  fd::Compute<T>* carry_h;               // [D, B, R]
  fd::Compute<T>* grad_hidden;           // layer norm: dh before the cell, [D, B, H]
  fd::Compute<T>* grad_product;          // layer norm: of the product before its normalisation, [D, B, G * H]
  int vector_hh, vector_hr;              // as in ForwardStep
};

template <class T>
class BackwardUnit {
 public:
  using A = fd::Compute<T>;

  FD_DEVICE BackwardUnit(const BackwardStep<T>& step, int d, int64_t b, int64_t unit)
      : f_(step),
        p_(step.p),
        q_(step.p.q),
        d_(d),
        b_(b),
        unit_(unit),
        row_(step.step[d].row(step.step[d].at, b)) {}

  FD_DEVICE bool active() const { return cuda::active(q_, f_.step[d_].at, b_); }
  FD_DEVICE bool restarted() const { return q_.reset && q_.reset[row_]; }
  FD_DEVICE A* carry_h() const { return f_.carry_h + (d_ * q_.rows.B + b_) * q_.R + unit_; }
  FD_DEVICE A* carry_c() const { return static_cast<A*>(p_.grad_c_0) + (d_ * q_.rows.B + b_) * q_.H + unit_; }
  FD_DEVICE A* grad_hidden() const { return f_.grad_hidden + (d_ * q_.rows.B + b_) * q_.H + unit_; }

  // arrived: the gradient of h after the step, but for the output's. Returns that of the new h; the old one's
  // share goes on.
  FD_DEVICE A unzoned_h(A arrived) const {
    if (p_.grad_output)
      arrived += fd::to_compute(columns(static_cast<const T*>(p_.grad_output), q_, d_, row_, q_.R)[unit_]);
    const A old = zoned_share<A>(q_, q_.zoneout_h, q_.zoneout[0], d_, row_, unit_, q_.R);
    *carry_h() = restarted() ? A(0) : zoned(A(0), arrived, old);
    return zoned(arrived, A(0), old);
  }
  FD_DEVICE void saved(A (&gates)[4]) const {
    const int own = own_saved_width(q_.s.cell), all = own + (q_.s.layer_norm ? gates_of(q_.s.cell) : 0);
    const T* from = columns(static_cast<const T*>(p_.gates), q_, d_, row_, all * q_.H);
#pragma unroll
    for (int g = 0; g < 4; ++g) gates[g] = g < own ? fd::to_compute(from[g * q_.H + unit_]) : A(0);
  }
  FD_DEVICE A c_old() const {
    const A* c = previous<A>(q_, f_.step[d_], d_, b_, p_.cells, q_.c_0, q_.H);
    return c ? c[unit_] : A(0);
  }
  FD_DEVICE A h_old() const {
    const T* h = previous<T>(q_, f_.step[d_], d_, b_, p_.output, q_.h_0, q_.R);
    return h ? fd::to_compute(h[unit_]) : A(0);
  }
  FD_DEVICE Peephole<A> peephole() const {
    const T* w = static_cast<const T*>(q_.weights[d_].weight_peephole);
    if (!w) return {};
    return {fd::to_compute(w[unit_]), fd::to_compute(w[q_.H + unit_]), fd::to_compute(w[2 * q_.H + unit_])};
  }
  // The gradient of c', what comes through h' not included.
  FD_DEVICE A unzoned_c() const {
    return zoned(*carry_c(), A(0), zoned_share<A>(q_, q_.zoneout_c, q_.zoneout[1], d_, row_, unit_, q_.H));
  }
  // Called once, last: carry_c becomes that of the state before.
  FD_DEVICE void put_c(A from_cell) const {
    const A old =
        zoned(A(0), *carry_c(), zoned_share<A>(q_, q_.zoneout_c, q_.zoneout[1], d_, row_, unit_, q_.H));
    *carry_c() = restarted() ? A(0) : old + from_cell;
  }
  // dh: of h', before projection. Without layer norm.
  FD_DEVICE CellGradient<A> cell(A dh) const {
    A gates[4];
    saved(gates);
    if (q_.s.cell == Cell::kGru) return gru_backward(gates, dh, h_old());
    if (q_.s.cell != Cell::kLstm) return plain_backward(q_.s.cell, gates[0], dh);
    const A c = c_old(), shown = hyperbolic_tangent(gates[1] * c + gates[0] * gates[2]);
    return lstm_backward(gates, dh, unzoned_c() + dh * gates[3] * (A(1) - shown * shown), c, shown,
                         peephole());
  }
  FD_DEVICE void put_gates(const CellGradient<A>& grad) const {
    const int gates = gates_of(q_.s.cell);
    T* to = columns(static_cast<T*>(p_.grad_gates), q_, d_, row_, gates * q_.H);
#pragma unroll
    for (int g = 0; g < 4; ++g)
      if (g < gates) to[g * q_.H + unit_] = fd::from_compute<T>(grad.gates[g]);
    if (q_.s.cell == Cell::kGru && !q_.s.layer_norm)
      columns(static_cast<T*>(p_.grad_gates_hh), q_, d_, row_, q_.H)[unit_] = fd::from_compute<T>(grad.u_n);
  }
  FD_DEVICE void put_states(const CellGradient<A>& grad) const {
    if (q_.s.cell == Cell::kLstm) put_c(grad.c_old);
    if (q_.s.cell == Cell::kGru && !restarted()) *carry_h() += grad.h_old;
  }
  FD_DEVICE void finish(A dh) const {
    const CellGradient<A> grad = cell(dh);
    put_gates(grad);
    put_states(grad);
  }
  FD_DEVICE void clear() const { put_gates({}); }

 private:
  const BackwardStep<T>& f_;
  const RnnBackward& p_;
  const RnnSequence& q_;
  int64_t d_, b_, unit_, row_;
};

// dh of the step before it: carry_h + mask * (W_hh^T of the gradients of step `after`); then unit by unit
// what needs no other unit.
template <class T, bool kGru>
struct ArriveJob {
  using Element = T;
  using A = fd::Compute<T>;
  // The gru's third gate has a recurrent gradient of its own.
  static constexpr int kGates = 1, kSegments = kGru ? 2 : 1;
  BackwardStep<T> f;
  int64_t units;  // R

  FD_DEVICE int64_t rows(int d) const { return f.rows[d]; }
  FD_DEVICE int64_t all_gates() const { return gates_of(f.p.q.s.cell) * f.p.q.H; }
  FD_DEVICE int length(int s) const {
    return static_cast<int>(!kGru ? all_gates() : s == 0 ? 2 * f.p.q.H : f.p.q.H);
  }
  FD_DEVICE Weight<T> weight(int s, int d) const {
    return {f.weight_hh[d] + s * 2 * f.p.q.H, f.p.q.R, all_gates(), f.vector_hh != 0};
  }
  FD_DEVICE bool follows(int d, int64_t b) const {
    const StepRows& after = f.step[d].after;
    return active(f.p.q, after, b) && !(f.p.q.reset && f.p.q.reset[f.step[d].row(after, b)]);
  }
  FD_DEVICE Line<T> line(int s, int d, int64_t b) const {
    const RnnSequence& q = f.p.q;
    if (!follows(d, b)) return {};
    const int64_t row = f.step[d].row(f.step[d].after, b);
    if (s == 1) return {columns(static_cast<const T*>(f.p.grad_gates_hh), q, d, row, q.H), nullptr};
    const void* grad = q.s.layer_norm ? f.p.grad_gates_hh : f.p.grad_gates;
    return {columns(static_cast<const T*>(grad), q, d, row, all_gates()), nullptr};
  }
  FD_DEVICE void finish(int d, int64_t b, int64_t unit, const A (&product)[1]) const {
    const RnnSequence& q = f.p.q;
    const BackwardUnit<T> own(f, d, b, unit);
    A arrived = *own.carry_h();
    if (follows(d, b)) {
      const T* mask = state<T>(q.recurrent_mask, q, d, b, q.R);
      arrived += mask ? product[0] * fd::to_compute(mask[unit]) : product[0];
    }
    if (f.steps_left == 0) {
      static_cast<T*>(f.p.grad_h_0)[(d * q.rows.B + b) * q.R + unit] = fd::from_compute<T>(arrived);
      return;
    }
    T* projected =
        q.s.has_projection && b < f.step[d].at.count
            ? columns(static_cast<T*>(f.p.grad_projected), q, d, f.step[d].row(f.step[d].at, b), q.R) + unit
            : nullptr;
    if (!own.active()) {
      *own.carry_h() = arrived;
      if (projected)
        *projected = fd::from_compute<T>(0);
      else if (b < f.step[d].at.count && !q.s.has_projection && !q.s.layer_norm)
        own.clear();
      return;
    }
    const A new_h = own.unzoned_h(arrived);
    if (projected)
      *projected = fd::from_compute<T>(new_h);
    else if (q.s.layer_norm)
      *own.grad_hidden() = new_h;
    else
      own.finish(new_h);
  }
};

// Through the projection: dh = W_hr^T grad_projected, then the cell.
template <class T>
struct HiddenJob {
  using Element = T;
  static constexpr int kGates = 1, kSegments = 1;
  BackwardStep<T> f;
  int64_t units;  // H

  FD_DEVICE int64_t rows(int d) const { return f.step[d].at.count; }
  FD_DEVICE int length(int) const { return static_cast<int>(f.p.q.R); }
  FD_DEVICE Weight<T> weight(int, int d) const {
    return {f.weight_hr[d], f.p.q.H, f.p.q.R, f.vector_hr != 0};
  }
  FD_DEVICE Line<T> line(int, int d, int64_t b) const {
    const Step& step = f.step[d];
    if (!active(f.p.q, step.at, b)) return {};
    return {columns(static_cast<const T*>(f.p.grad_projected), f.p.q, d, step.row(step.at, b), f.p.q.R),
            nullptr};
  }
  FD_DEVICE void finish(int d, int64_t b, int64_t unit, const fd::Compute<T> (&dh)[1]) const {
    const BackwardUnit<T> own(f, d, b, unit);
    if (f.p.q.s.layer_norm)
      *own.grad_hidden() = dh[0];
    else if (own.active())
      own.finish(dh[0]);
    else
      own.clear();
  }
};

// carry_h and carry_c as the last step finds them. Grid: any.
template <class T>
__global__ void __launch_bounds__(256) arriving_gradients_kernel(const __grid_constant__ BackwardStep<T> f) {
  using A = fd::Compute<T>;
  const RnnSequence& q = f.p.q;
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x,
                stride = int64_t{gridDim.x} * blockDim.x;
  const int64_t all = q.s.directions * q.rows.B;
  for (int64_t i = first; i < all * q.R; i += stride)
    f.carry_h[i] = f.p.grad_h_n ? fd::to_compute(static_cast<const T*>(f.p.grad_h_n)[i]) : A(0);
  if (!f.p.grad_c_0) return;
  for (int64_t i = first; i < all * q.H; i += stride)
    static_cast<A*>(f.p.grad_c_0)[i] = f.p.grad_c_n ? static_cast<const A*>(f.p.grad_c_n)[i] : A(0);
}

// to[columns, rows] = from[rows, columns]^T, by tiles of 32 by 32. Grid (ceil(columns / 32), ceil(rows /
// 32)).
template <class T>
__global__ void __launch_bounds__(256) transpose_kernel(const T* from, T* to, int64_t rows, int64_t columns) {
  FD_SHARED(T, tile, [32][33]);
  const int64_t row = int64_t{blockIdx.y} * 32, column = int64_t{blockIdx.x} * 32;
  const int x = threadIdx.x % 32, y = threadIdx.x / 32;
  for (int i = y; i < 32; i += 8)
    if (row + i < rows && column + x < columns) tile[i][x] = from[(row + i) * columns + column + x];
  __syncthreads();
  for (int i = y; i < 32; i += 8)
    if (column + i < columns && row + x < rows) to[(column + i) * rows + row + x] = tile[x][i];
}

}  // namespace fastdl::cuda
