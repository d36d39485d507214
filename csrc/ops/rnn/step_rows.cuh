// Where the rows of a step lie, which of them are active, and the state a step starts from. Used by every
// kernel that takes one step.
#pragma once
#include "common/cuda/scalar.cuh"
#include "ops/rnn/rnn.h"

namespace fastdl::cuda {

// Sequences b < count; row (t, b) of a per-row tensor is first + b * row_b. Count 0: there is no such step.
struct StepRows {
  int64_t t = 0, first = 0, count = 0;
};

// One direction's step and its neighbours, `before` and `after` as that direction takes them.
struct Step {
  StepRows at, before, after;
  int64_t row_b = 1;

  FD_DEVICE int64_t row(const StepRows& rows, int64_t b) const { return rows.first + b * row_b; }
};

inline StepRows rows_of(const RnnRows& rows, int64_t t) {
  if (t < 0 || t >= rows.T) return {};
  if (!rows.batch_sizes) return {t, t * rows.row_t, rows.B};
  return {t, rows.row_offset[t], rows.batch_sizes[t]};
}

// The i-th step that direction d takes; i may lie one outside.
inline Step step_of(const RnnRows& rows, int64_t d, int64_t i) {
  const int64_t t = d ? rows.T - 1 - i : i, forward = d ? -1 : 1;
  return {rows_of(rows, t), rows_of(rows, t - forward), rows_of(rows, t + forward),
          rows.batch_sizes ? 1 : rows.row_b};
}

FD_DEVICE bool active(const RnnSequence& q, const StepRows& rows, int64_t b) {
  return b < rows.count && (!q.lengths || rows.t < q.lengths[b]);
}

// b's entry of a state [D, B, width], or null.
template <class T>
FD_DEVICE const T* state(const void* states, const RnnSequence& q, int64_t d, int64_t b, int64_t width) {
  return states ? static_cast<const T*>(states) + (d * q.rows.B + b) * width : nullptr;
}
// Direction d's columns of a row of a per-row tensor [*rows, D * width].
template <class T>
FD_DEVICE T* columns(T* rows, const RnnSequence& q, int64_t d, int64_t row, int64_t width) {
  return rows + (row * q.s.directions + d) * width;
}

// The state [width] that step `at` starts from: what the step before left in `values` [*rows, D * width], or
// `initial`; null: zero.
template <class T>
FD_DEVICE const T* previous(const RnnSequence& q, const Step& step, int64_t d, int64_t b, const void* values,
                            const void* initial, int64_t width) {
  if (q.reset && q.reset[step.row(step.at, b)]) return nullptr;
  if (!active(q, step.before, b)) return state<T>(initial, q, d, b, width);
  return columns(static_cast<const T*>(values), q, d, step.row(step.before, b), width);
}

// Zoneout's share of the old value: 0 or 1 by the mask [*rows, D * width], else the probability.
template <class A>
FD_DEVICE A zoned_share(const RnnSequence& q, const uint8_t* keep, double probability, int64_t d, int64_t row,
                        int64_t unit, int64_t width) {
  if (!keep) return static_cast<A>(probability);
  return columns(keep, q, d, row, width)[unit] ? A(1) : A(0);
}
// A share of exactly 0 or 1 takes one value alone, so that a NaN of the other does not get in.
template <class A>
FD_DEVICE A zoned(A value, A old, A share) {
  return share == A(0) ? value : share == A(1) ? old : share * old + (A(1) - share) * value;
}

}  // namespace fastdl::cuda
