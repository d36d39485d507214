// A whole sequence backward in one launch, for cells without layer norm and projection.
// How work is split: persistent.cuh, over transposed weights; the values of a step are the gradients of the
// recurrent
//   product, gate after gate. A thread makes one unit of 4 / kSplits rows and keeps dh and dc in registers.
// Saves nothing.
#pragma once
#include "ops/rnn/persistent_exchange.cuh"
#include "ops/rnn/persistent_pack.cuh"

namespace fastdl::cuda {

template <class T>
struct PersistentBackward {
  RnnBackward p;
  PersistentShape shape;
  PersistentRows rows;
  const Piece<T>* packed;
  PersistentGroups<T> groups;
};

template <class T, int kGates, int kSplits>
class BackwardThread {
 public:
  using A = fd::Compute<T>;
  static constexpr int kRows = 4 / kSplits, kSaved = kGates == 1 ? 1 : 4;

  FD_DEVICE BackwardThread(const PersistentBackward<T>& f, const PersistentPlace& own)
      : f_(f), q_(f.p.q), own_(own), exists_(own.j < f.p.q.H) {
    if (!exists_) return;
    const T* peephole = static_cast<const T*>(q_.weights[own.d].weight_peephole);
    if (peephole)
      peephole_ = {fd::to_compute(peephole[own.j]), fd::to_compute(peephole[q_.H + own.j]),
                   fd::to_compute(peephole[2 * q_.H + own.j])};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (b(r) >= q_.rows.B) continue;
      const T *dh = state<T>(f.p.grad_h_n, q_, own.d, b(r), q_.H),
              *mask = state<T>(q_.recurrent_mask, q_, own.d, b(r), q_.H);
      const A* dc = state<A>(f.p.grad_c_n, q_, own.d, b(r), q_.H);
      dh_[r] = dh ? fd::to_compute(dh[own.j]) : A(0);
      dc_[r] = kGates == 4 && dc ? dc[own.j] : A(0);
      mask_[r] = mask ? fd::to_compute(mask[own.j]) : A(1);
      limit_[r] = length_[r] = static_cast<int>(f.rows.rows_of(b(r)));
      if (q_.lengths && q_.lengths[b(r)] < limit_[r])
        length_[r] = static_cast<int>(max(q_.lengths[b(r)], int64_t{0}));
    }
  }

  // Everything the i-th step of the direction reads from memory, asked for before its product.
  FD_DEVICE void fetch(int64_t i) {
    if (!exists_) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t t = time(i);
      if (t >= length_[r]) continue;
      const int64_t at = f_.rows.row(t, b(r));
      const T* gates = columns(static_cast<const T*>(f_.p.gates), q_, own_.d, at, kSaved * q_.H) + own_.j;
#pragma unroll
      for (int k = 0; k < kSaved; ++k) saved_[r][k] = gates[k * q_.H];
      restarts_[r] = q_.reset && q_.reset[at];
      if (f_.p.grad_output)
        grad_output_[r] = columns(static_cast<const T*>(f_.p.grad_output), q_, own_.d, at, q_.H)[own_.j];
      if constexpr (kGates == 4) c_old_[r] = old<A>(i, r, f_.p.cells, q_.c_0);
      if constexpr (kGates == 3) h_old_[r] = old<T>(i, r, f_.p.output, q_.h_0);
    }
  }

  // product: of the step that follows, if one does.
  template <class Product>
  FD_DEVICE void step(int64_t i, bool follows, const Product& product) {
    if (!exists_) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (follows) take(r, product);
      follows_[r] = false;
      const int64_t t = time(i);
      if (t >= length_[r]) continue;
      const int64_t at = f_.rows.row(t, b(r));
      const A arrived = f_.p.grad_output ? dh_[r] + fd::to_compute(grad_output_[r]) : dh_[r];
      const A keep = zoned_share<A>(q_, q_.zoneout_h, q_.zoneout[0], own_.d, at, own_.j, q_.H);
      const A new_h = zoned(arrived, A(0), keep), old_h = zoned(A(0), arrived, keep);
      A saved[4] = {};
#pragma unroll
      for (int k = 0; k < kSaved; ++k) saved[k] = fd::to_compute(saved_[r][k]);
      CellGradient<A> grad;
      A old_c = A(0);
      if constexpr (kGates == 4) {
        const A keep_c = zoned_share<A>(q_, q_.zoneout_c, q_.zoneout[1], own_.d, at, own_.j, q_.H);
        const A c_old = c_old_[r], shown = hyperbolic_tangent(saved[1] * c_old + saved[0] * saved[2]);
        old_c = zoned(A(0), dc_[r], keep_c);
        grad = lstm_backward(saved, new_h,
                             zoned(dc_[r], A(0), keep_c) + new_h * saved[3] * (A(1) - shown * shown), c_old,
                             shown, peephole_);
      } else if constexpr (kGates == 3) {
        grad = gru_backward(saved, new_h, fd::to_compute(h_old_[r]));
      } else {
        grad = plain_backward(q_.s.cell, saved[0], new_h);
      }
      dh_[r] = restarts_[r] ? A(0) : old_h + grad.h_old;
      dc_[r] = restarts_[r] ? A(0) : old_c + grad.c_old;
      follows_[r] = !restarts_[r];
#pragma unroll
      for (int g = 0; g < kGates; ++g) grad_[r][g] = fd::from_compute<T>(grad.gates[g]);
      u_n_[r] = fd::from_compute<T>(grad.u_n);
    }
  }

  // The gradients of the recurrent product, for the step before; zero where they go nowhere.
  FD_DEVICE void leave(T* values) const {
    if (!exists_) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int g = 0; g < kGates; ++g) {
        const T grad = kGates == 3 && g == 2 ? u_n_[r] : grad_[r][g];
        values[row(r) * f_.shape.pitch + g * f_.shape.units * f_.shape.blocks + own_.j] =
            follows_[r] ? grad : fd::from_compute<T>(0);
      }
  }

  FD_DEVICE void store(int64_t i) const {
    if (!exists_) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t t = time(i);
      if (t >= limit_[r]) continue;
      const int64_t at = f_.rows.row(t, b(r));
      const bool active = t < length_[r];
      const T zero = fd::from_compute<T>(0);
      T* gates = columns(static_cast<T*>(f_.p.grad_gates), q_, own_.d, at, kGates * q_.H) + own_.j;
#pragma unroll
      for (int g = 0; g < kGates; ++g) gates[g * q_.H] = active ? grad_[r][g] : zero;
      if constexpr (kGates == 3)
        columns(static_cast<T*>(f_.p.grad_gates_hh), q_, own_.d, at, q_.H)[own_.j] = active ? u_n_[r] : zero;
    }
  }

  template <class Product>
  FD_DEVICE void finish(bool follows, const Product& product) {
    if (!exists_) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (b(r) >= q_.rows.B) continue;
      if (follows) take(r, product);
      const int64_t at = (own_.d * q_.rows.B + b(r)) * q_.H + own_.j;
      static_cast<T*>(f_.p.grad_h_0)[at] = fd::from_compute<T>(dh_[r]);
      if constexpr (kGates == 4) static_cast<A*>(f_.p.grad_c_0)[at] = dc_[r];
    }
  }

  FD_DEVICE int64_t time(int64_t i) const { return own_.d ? f_.rows.T - 1 - i : i; }

 private:
  FD_DEVICE int row(int r) const { return own_.row + r * own_.row_step; }
  FD_DEVICE int64_t b(int r) const { return own_.first_b + row(r); }

  // dh becomes that of the state before the step that follows.
  template <class Product>
  FD_DEVICE void take(int r, const Product& product) {
    if (follows_[r]) dh_[r] += mask_[r] * product.total(0, row(r), own_.unit);
  }
  // The state that step i starts from.
  template <class S>
  FD_DEVICE S old(int64_t i, int r, const void* values, const void* initial) const {
    const S zero = fd::from_compute<S>(0);
    if (restarts_[r]) return zero;
    if (i > 0 && time(i - 1) < length_[r])
      return columns(static_cast<const S*>(values), q_, own_.d, f_.rows.row(time(i - 1), b(r)), q_.H)[own_.j];
    const S* first = state<S>(initial, q_, own_.d, b(r), q_.H);
    return first ? first[own_.j] : zero;
  }

  const PersistentBackward<T>& f_;
  const RnnSequence& q_;
  const PersistentPlace own_;
  const bool exists_;
  Peephole<A> peephole_{};
  A dh_[kRows], dc_[kRows], mask_[kRows], c_old_[kRows];
  T saved_[kRows][kSaved], grad_output_[kRows], h_old_[kRows], grad_[kRows][kGates], u_n_[kRows];
  bool restarts_[kRows], follows_[kRows] = {};
  int length_[kRows] = {}, limit_[kRows] = {};  // of steps: active ones, ones with a row
};

// Group: Cluster or Grid, how blocks exchange values.
template <class T, int kGates, int kSplits, class Group>
__global__ void __launch_bounds__(kPersistentThreads, 1)
    persistent_backward_kernel(const __grid_constant__ PersistentBackward<T> f) {
  FD_DYNAMIC_SHARED(unsigned char, shared);
  const PersistentShape& s = f.shape;
  const PersistentPlace own = PersistentPlace::of(s, f.groups.first_tile);
  const PersistentMemory<T> memory(shared, s, 1);
  const Resident<T, 1, kSplits> product(
      s, memory, f.packed + (own.d * s.blocks + own.rank) * (packed_pieces<T>(s, 1) / s.blocks));
  BackwardThread<T, kGates, kSplits> thread(f, own);
  typename Group::template Exchange<T> exchange(s, own, f.groups);

  for (int i = threadIdx.x; i < Group::kBuffers * kTileRows * s.pitch; i += s.threads)
    memory.values[i] = fd::from_compute<T>(0);
  const int64_t last = f.rows.T - 1;
  if (last >= 0) thread.fetch(last);
  exchange.begin();
  T* values = memory.values;
  for (int64_t i = last; i >= 0; --i) {
    if (i < last) {
      product.multiply(values);
      __syncthreads();
    }
    thread.step(i, i < last, product);
    values = memory.values + (last - i) % Group::kBuffers * kTileRows * s.pitch;
    thread.leave(values);
    exchange.send(values, kGates);
    // Off the path from one step to the next: the barrier does not wait for these.
    thread.store(i);
    if (i > 0) thread.fetch(i - 1);
    exchange.await(values);
  }
  if (last >= 0) {
    product.multiply(values);
    __syncthreads();
  }
  thread.finish(last >= 0, product);
}

}  // namespace fastdl::cuda
