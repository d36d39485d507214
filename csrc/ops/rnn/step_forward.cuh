// A step forward: h_{t-1} W_hh^T and the cell in one launch; layer norm and projection add one each.
// How work is split: step_product.cuh; layer norm: a block a row (norm_forward.cuh).
// Saves for backward: the gates after their activations and c, where asked for.
#pragma once
#include "ops/rnn/cell.cuh"
#include "ops/rnn/step_product.cuh"
#include "ops/rnn/step_rows.cuh"

namespace fastdl::cuda {

// Columns of `gates` in units of H, without those of a layer norm.
FD_DEVICE int own_saved_width(Cell cell) { return cell == Cell::kLstm || cell == Cell::kGru ? 4 : 1; }

template <class T>
struct ForwardStep {
  RnnForward p;
  Step step[2];             // by direction
  fd::Compute<T>* product;  // layer norm: [D, B, G * H]
  T* hidden;                // projection: h before it, [D, B, H]
  // Not 0: the product reads 16 bytes at once. Not bool: GCC 12 with -ftrivial-auto-var-init=pattern clears
  // other bytes than the padding they would leave.
  int vector_hh, vector_hr;
};

template <class T, int kGates>
class ForwardUnit {
 public:
  using A = fd::Compute<T>;

  FD_DEVICE ForwardUnit(const ForwardStep<T>& step, int d, int64_t b, int64_t unit)
      : f_(step),
        p_(step.p),
        q_(step.p.q),
        d_(d),
        b_(b),
        unit_(unit),
        row_(step.step[d].row(step.step[d].at, b)) {}

  FD_DEVICE bool active() const { return cuda::active(q_, f_.step[d_].at, b_); }

  // u: the recurrent product as it enters the gates, without its bias.
  FD_DEVICE CellValue<A> cell(const A (&u)[kGates]) const {
    const auto& w = q_.weights[d_];
    const T *bias = static_cast<const T*>(w.bias_hh), *peephole = static_cast<const T*>(w.weight_peephole);
    const T* x = static_cast<const T*>(p_.x) + row_ * p_.x_row_stride + d_ * kGates * q_.H;
    A gx[kGates], biased[kGates];
#pragma unroll
    for (int g = 0; g < kGates; ++g) {
      gx[g] = fd::to_compute(x[g * q_.H + unit_]);
      biased[g] = bias ? u[g] + fd::to_compute(bias[g * q_.H + unit_]) : u[g];
    }
    Peephole<A> peep{};
    if (peephole)
      peep = {fd::to_compute(peephole[unit_]), fd::to_compute(peephole[q_.H + unit_]),
              fd::to_compute(peephole[2 * q_.H + unit_])};
    return cell_forward(q_.s.cell, gx, biased, kGates == 3 ? h_old(q_.H) : A(0), c_old(), peep);
  }

  FD_DEVICE A h_old(int64_t width) const {
    const T* h = previous<T>(q_, f_.step[d_], d_, b_, p_.output, q_.h_0, width);
    return h ? fd::to_compute(h[unit_]) : A(0);
  }
  // c_n is where c is kept from step to step.
  FD_DEVICE A c_old() const {
    if (kGates != 4 || (q_.reset && q_.reset[row_])) return A(0);
    if (cuda::active(q_, f_.step[d_].before, b_)) return *c_now();
    const A* c = state<A>(q_.c_0, q_, d_, b_, q_.H);
    return c ? c[unit_] : A(0);
  }
  FD_DEVICE A* c_now() const { return static_cast<A*>(p_.c_n) + (d_ * q_.rows.B + b_) * q_.H + unit_; }

  // c with zoneout, as it goes on.
  FD_DEVICE A keep_c(A c) const {
    if (kGates != 4) return c;
    c = zoned(c, c_old(), zoned_share<A>(q_, q_.zoneout_c, q_.zoneout[1], d_, row_, unit_, q_.H));
    *c_now() = c;
    return c;
  }
  FD_DEVICE void save(const A (&saved)[4], A c) const {
    const int own = own_saved_width(q_.s.cell), all = own + (q_.s.layer_norm ? kGates : 0);
    if (p_.gates) {
      T* gates = columns(static_cast<T*>(p_.gates), q_, d_, row_, all * q_.H);
#pragma unroll
      for (int g = 0; g < 4; ++g)
        if (g < own) gates[g * q_.H + unit_] = fd::from_compute<T>(saved[g]);
    }
    if (p_.cells) columns(static_cast<A*>(p_.cells), q_, d_, row_, q_.H)[unit_] = c;
  }
  // h with zoneout; the last step of a sequence leaves it in h_n as well. Width: R.
  FD_DEVICE void put_h(A h) const {
    h = zoned(h, h_old(q_.R), zoned_share<A>(q_, q_.zoneout_h, q_.zoneout[0], d_, row_, unit_, q_.R));
    const T rounded = fd::from_compute<T>(h);
    columns(static_cast<T*>(p_.output), q_, d_, row_, q_.R)[unit_] = rounded;
    if (!cuda::active(q_, f_.step[d_].after, b_))
      static_cast<T*>(p_.h_n)[(d_ * q_.rows.B + b_) * q_.R + unit_] = rounded;
  }
  FD_DEVICE T* hidden() const { return f_.hidden + (d_ * q_.rows.B + b_) * q_.H + unit_; }
  FD_DEVICE void finish(const CellValue<A>& value) const {
    save(value.saved, keep_c(value.c));
    if (q_.s.has_projection)
      *hidden() = fd::from_compute<T>(value.h);
    else
      put_h(value.h);
  }
  // Of a row past its length.
  FD_DEVICE void clear_cell() const {
    const A zero[4] = {};
    save(zero, A(0));
    if (!q_.s.has_projection) clear_output();
  }
  FD_DEVICE void clear_output() const {
    columns(static_cast<T*>(p_.output), q_, d_, row_, q_.R)[unit_] = fd::from_compute<T>(0);
  }

 private:
  const ForwardStep<T>& f_;
  const RnnForward& p_;
  const RnnSequence& q_;
  int64_t d_, b_, unit_, row_;
};

// The product with weight_hh; a job's part that does not depend on what follows.
template <class T>
struct RecurrentProduct {
  using Element = T;
  static constexpr int kSegments = 1;
  ForwardStep<T> f;
  int64_t units;

  RecurrentProduct(const ForwardStep<T>& step, int64_t count) : f(step), units(count) {}
  FD_DEVICE int64_t rows(int d) const { return f.step[d].at.count; }
  FD_DEVICE int length(int) const { return static_cast<int>(f.p.q.R); }
  FD_DEVICE Weight<T> weight(int, int d) const {
    return {static_cast<const T*>(f.p.q.weights[d].weight_hh), f.p.q.H, f.p.q.R, f.vector_hh != 0};
  }
  FD_DEVICE Line<T> line(int, int d, int64_t b) const {
    const RnnSequence& q = f.p.q;
    if (!active(q, f.step[d].at, b)) return {};
    return {previous<T>(q, f.step[d], d, b, f.p.output, q.h_0, q.R),
            state<T>(q.recurrent_mask, q, d, b, q.R)};
  }
};

template <class T, int kGateCount>
struct CellJob : RecurrentProduct<T> {
  static constexpr int kGates = kGateCount;

  explicit CellJob(const ForwardStep<T>& step) : RecurrentProduct<T>(step, step.p.q.H) {}
  FD_DEVICE void finish(int d, int64_t b, int64_t unit, const fd::Compute<T> (&u)[kGates]) const {
    const ForwardUnit<T, kGates> own(this->f, d, b, unit);
    if (own.active())
      own.finish(own.cell(u));
    else
      own.clear_cell();
  }
};

// Layer norm: the product is left in memory for norm_forward.cuh.
template <class T>
struct ProductJob : RecurrentProduct<T> {
  static constexpr int kGates = 1;

  explicit ProductJob(const ForwardStep<T>& step)
      : RecurrentProduct<T>(step, num_gates(step.p.q.s.cell) * step.p.q.H) {}
  FD_DEVICE void finish(int d, int64_t b, int64_t unit, const fd::Compute<T> (&u)[1]) const {
    this->f.product[(d * this->f.p.q.rows.B + b) * this->units + unit] = u[0];
  }
};

// W_hr h.
template <class T>
struct ProjectJob {
  using Element = T;
  static constexpr int kGates = 1, kSegments = 1;
  ForwardStep<T> f;
  int64_t units;  // R

  FD_DEVICE int64_t rows(int d) const { return f.step[d].at.count; }
  FD_DEVICE int length(int) const { return static_cast<int>(f.p.q.H); }
  FD_DEVICE Weight<T> weight(int, int d) const {
    return {static_cast<const T*>(f.p.q.weights[d].weight_hr), f.p.q.R, f.p.q.H, f.vector_hr != 0};
  }
  FD_DEVICE Line<T> line(int, int d, int64_t b) const {
    if (!active(f.p.q, f.step[d].at, b)) return {};
    return {state<T>(f.hidden, f.p.q, d, b, f.p.q.H), nullptr};
  }
  FD_DEVICE void finish(int d, int64_t b, int64_t unit, const fd::Compute<T> (&h)[1]) const {
    const ForwardUnit<T, 1> own(f, d, b, unit);
    if (own.active())
      own.put_h(h[0]);
    else
      own.clear_output();
  }
};

// Sequences without a step of their own end in the states they began with. Grid: any.
template <class T>
__global__ void __launch_bounds__(256) initial_states_kernel(const __grid_constant__ RnnForward p) {
  using A = fd::Compute<T>;
  const RnnSequence& q = p.q;
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x,
                stride = int64_t{gridDim.x} * blockDim.x;
  const int64_t all = q.s.directions * q.rows.B;
  for (int64_t i = first; i < all * q.R; i += stride)
    static_cast<T*>(p.h_n)[i] = q.h_0 ? static_cast<const T*>(q.h_0)[i] : fd::from_compute<T>(0);
  if (!p.c_n) return;
  for (int64_t i = first; i < all * q.H; i += stride)
    static_cast<A*>(p.c_n)[i] = q.c_0 ? static_cast<const A*>(q.c_0)[i] : A(0);
}

}  // namespace fastdl::cuda
