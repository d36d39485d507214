// A whole sequence forward in one launch, for cells without layer norm and projection.
// How work is split: persistent.cuh; after the product a thread makes one unit of 4 / kSplits rows, whose
// states it
//   keeps in registers.
// Saves for backward: the gates after their activations and c, where asked for.
#pragma once
#include "ops/rnn/persistent_exchange.cuh"
#include "ops/rnn/persistent_pack.cuh"

namespace fastdl::cuda {

template <class T>
struct PersistentForward {
  RnnForward p;
  PersistentShape shape;
  PersistentRows rows;
  const Piece<T>* packed;
  PersistentGroups<T> groups;
};

template <class T, int kGates, int kSplits>
class ForwardThread {
 public:
  using A = fd::Compute<T>;
  static constexpr int kRows = 4 / kSplits, kSaved = kGates == 1 ? 1 : 4;

  FD_DEVICE ForwardThread(const PersistentForward<T>& f, const PersistentPlace& own)
      : f_(f), q_(f.p.q), own_(own) {
    exists_ = own.j < q_.H;
    if (!exists_) return;
    const RnnWeights& w = q_.weights[own.d];
    const T *bias = static_cast<const T*>(w.bias_hh), *peephole = static_cast<const T*>(w.weight_peephole);
#pragma unroll
    for (int q = 0; q < kGates; ++q) bias_[q] = bias ? fd::to_compute(bias[q * q_.H + own.j]) : A(0);
    if (peephole)
      peephole_ = {fd::to_compute(peephole[own.j]), fd::to_compute(peephole[q_.H + own.j]),
                   fd::to_compute(peephole[2 * q_.H + own.j])};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t b = first_b(r);
      if (b >= q_.rows.B) continue;
      const T *h = state<T>(q_.h_0, q_, own.d, b, q_.H),
              *mask = state<T>(q_.recurrent_mask, q_, own.d, b, q_.H);
      const A* c = state<A>(q_.c_0, q_, own.d, b, q_.H);
      h_[r] = h ? h[own.j] : fd::from_compute<T>(0);
      c_[r] = kGates == 4 && c ? c[own.j] : A(0);
      mask_[r] = mask ? fd::to_compute(mask[own.j]) : A(1);
      limit_[r] = length_[r] = static_cast<int>(f.rows.rows_of(b));
      if (q_.lengths && q_.lengths[b] < limit_[r])
        length_[r] = static_cast<int>(max(q_.lengths[b], int64_t{0}));
    }
  }

  // Everything step t reads from memory, asked for before the step's product.
  FD_DEVICE void fetch(int64_t t) {
    if (!exists_) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (t >= length_[r]) continue;
      const T* x = static_cast<const T*>(f_.p.x) + f_.rows.row(t, first_b(r)) * f_.p.x_row_stride +
                   own_.d * kGates * q_.H + own_.j;
#pragma unroll
      for (int q = 0; q < kGates; ++q) gx_[r][q] = x[q * q_.H];
    }
  }

  // What step t's product takes of this unit's state.
  FD_DEVICE void enter(int64_t t, T* values) const {
    if (!exists_) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (first_b(r) >= q_.rows.B) continue;
      const bool restarts = t < length_[r] && q_.reset && q_.reset[f_.rows.row(t, first_b(r))];
      values[row(r) * f_.shape.pitch + own_.j] = restarts ? fd::from_compute<T>(0)
                                                 : q_.recurrent_mask
                                                     ? fd::from_compute<T>(fd::to_compute(h_[r]) * mask_[r])
                                                     : h_[r];
    }
  }

  template <class Product>
  FD_DEVICE void step(int64_t t, const Product& product) {
    if (!exists_) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (t >= length_[r]) continue;
      const int64_t at = f_.rows.row(t, first_b(r));
      const bool restarts = q_.reset && q_.reset[at];
      const A h_old = restarts ? A(0) : fd::to_compute(h_[r]), c_old = restarts ? A(0) : c_[r];
      A u[kGates], gx[kGates];
#pragma unroll
      for (int q = 0; q < kGates; ++q) {
        u[q] = product.total(q, row(r), own_.unit) + bias_[q];
        gx[q] = fd::to_compute(gx_[r][q]);
      }
      const CellValue<A> value = cell_forward(q_.s.cell, gx, u, h_old, c_old, peephole_);
      h_[r] = fd::from_compute<T>(
          zoned(value.h, h_old, zoned_share<A>(q_, q_.zoneout_h, q_.zoneout[0], own_.d, at, own_.j, q_.H)));
      if constexpr (kGates == 4)
        c_[r] =
            zoned(value.c, c_old, zoned_share<A>(q_, q_.zoneout_c, q_.zoneout[1], own_.d, at, own_.j, q_.H));
#pragma unroll
      for (int i = 0; i < kSaved; ++i) saved_[r][i] = fd::from_compute<T>(value.saved[i]);
    }
  }

  // Rows past their length are zero.
  FD_DEVICE void store(int64_t t) const {
    if (!exists_) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (t >= limit_[r]) continue;
      const int64_t at = f_.rows.row(t, first_b(r));
      const bool active = t < length_[r];
      const T zero = fd::from_compute<T>(0);
      columns(static_cast<T*>(f_.p.output), q_, own_.d, at, q_.H)[own_.j] = active ? h_[r] : zero;
      if (f_.p.gates)
#pragma unroll
        for (int i = 0; i < kSaved; ++i)
          columns(static_cast<T*>(f_.p.gates), q_, own_.d, at, kSaved * q_.H)[i * q_.H + own_.j] =
              active ? saved_[r][i] : zero;
      if (kGates == 4 && f_.p.cells)
        columns(static_cast<A*>(f_.p.cells), q_, own_.d, at, q_.H)[own_.j] = active ? c_[r] : A(0);
    }
  }

  FD_DEVICE void finish() const {
    if (!exists_) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (first_b(r) >= q_.rows.B) continue;
      const int64_t at = (own_.d * q_.rows.B + first_b(r)) * q_.H + own_.j;
      static_cast<T*>(f_.p.h_n)[at] = h_[r];
      if constexpr (kGates == 4) static_cast<A*>(f_.p.c_n)[at] = c_[r];
    }
  }

 private:
  FD_DEVICE int row(int r) const { return own_.row + r * own_.row_step; }
  FD_DEVICE int64_t first_b(int r) const { return own_.first_b + row(r); }

  const PersistentForward<T>& f_;
  const RnnSequence& q_;
  const PersistentPlace own_;
  bool exists_;
  A bias_[kGates];
  Peephole<A> peephole_{};
  T h_[kRows];
  A c_[kRows], mask_[kRows];
  int length_[kRows] = {}, limit_[kRows] = {};  // of steps: active ones, ones with a row
  T gx_[kRows][kGates], saved_[kRows][kSaved];
};

// Group: Cluster or Grid, how blocks exchange values.
template <class T, int kGates, int kSplits, class Group>
__global__ void __launch_bounds__(kPersistentThreads, 1)
    persistent_forward_kernel(const __grid_constant__ PersistentForward<T> f) {
  FD_DYNAMIC_SHARED(unsigned char, shared);
  const PersistentShape& s = f.shape;
  const PersistentPlace own = PersistentPlace::of(s, f.groups.first_tile);
  const PersistentMemory<T> memory(shared, s, kGates);
  const Resident<T, kGates, kSplits> product(
      s, memory, f.packed + (own.d * s.blocks + own.rank) * (packed_pieces<T>(s, kGates) / s.blocks));
  auto time = [&](int64_t i) { return own.d ? f.rows.T - 1 - i : i; };
  ForwardThread<T, kGates, kSplits> thread(f, own);
  typename Group::template Exchange<T> exchange(s, own, f.groups);

  for (int i = threadIdx.x; i < Group::kBuffers * kTileRows * s.pitch; i += s.threads)
    memory.values[i] = fd::from_compute<T>(0);
  exchange.begin();
  if (f.rows.T > 0) {
    thread.enter(time(0), memory.values);
    exchange.send(memory.values, 1);
    thread.fetch(time(0));
    exchange.await(memory.values);
  }
  for (int64_t i = 0; i < f.rows.T; ++i) {
    product.multiply(memory.values + i % Group::kBuffers * kTileRows * s.pitch);
    __syncthreads();
    thread.step(time(i), product);
    if (i + 1 == f.rows.T) {
      thread.store(time(i));
      break;
    }
    T* next = memory.values + (i + 1) % Group::kBuffers * kTileRows * s.pitch;
    thread.enter(time(i + 1), next);
    exchange.send(next, 1);
    // Off the path from one step to the next: the barrier does not wait for these.
    thread.fetch(time(i + 1));
    thread.store(time(i));
    exchange.await(next);
  }
  thread.finish();
}

}  // namespace fastdl::cuda
