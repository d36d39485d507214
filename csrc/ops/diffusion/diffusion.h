// The arguments of the diffusion kernels. Every tensor is dense, samples outermost, all in one memory order.
#pragma once
#include <cstdint>

#include "common/dtype.h"

namespace fastdl {

// Columns of a table's row; see fastdl/ops/diffusion/table.py.
enum Column { kX0Sample, kX0Model, kX0Noise, kSample, kX0, kModel, kHistory, kNoise, kValue, kColumns };

// Which row of the table a sample uses.
struct TableRows {
  const float* table;  // [table_rows, kColumns]
  int64_t table_rows;
  const int64_t* row_of;  // [samples], or [1] for all of them (stride 0), or null: `row` for all of them
  int64_t row_stride, row;
};

enum class Limit : int { kNone, kClip, kThreshold };

// x_0 and the result of one step:
//   m = model_output, or u + guidance (c - u), times its rescale
//   x_0 = X0_SAMPLE sample + X0_MODEL m + X0_NOISE noise, limited
//   prev = SAMPLE sample + X0 x_0 + MODEL m + HISTORY history + NOISE noise
struct DiffusionStep {
  DType dtype;
  int64_t samples, sample_size;
  TableRows rows;
  const void *sample, *model_output, *history, *noise;  // null where there is none
  const int64_t* seed;                                  // (seed, offset) of noise made here, or null
  bool guided;                                          // model_output holds 2 samples: u, then c
  Limit limit;
  double guidance, rescale, limit_value, quantile;  // limit_value: clip range, or largest threshold
  void *prev, *x_0;                                 // null where not wanted
  float* value;  // [samples], or [1] if all share a row; null where not wanted
};

struct DiffusionStepBackward {
  DType dtype;
  int64_t samples, sample_size;
  TableRows rows;
  const void *grad_prev, *grad_x0;    // at least one
  const void *sample, *model_output;  // only where clipped
  bool guided, clipped;
  double guidance, limit_value;
  void *grad_sample, *grad_model, *grad_history, *grad_noise;  // null where not wanted
};

struct NormalNoise {
  DType dtype;
  int64_t count;
  const int64_t* seed;
  void* output;
};

}  // namespace fastdl
