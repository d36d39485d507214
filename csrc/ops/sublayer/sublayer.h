// The two halves of a Transformer layer, f between a residual connection and a layer norm
// (fastdl/ops/sublayer/schema.py): what the kernels are given and must fill in. float32, without gradient.
#pragma once
#include <cstdint>

#include "ops/attention/attention.h"
#include "ops/linear/linear.h"

namespace fastdl {

// What is around f, the codes of fastdl/ops/sublayer/schema.py: f(x), x + f(norm(x)), norm(x + f(x)).
enum class Around : int { kNothing = 0, kPreNorm = 1, kPostNorm = 2 };

struct Norm {
  Around around;
  const float *weight, *bias;  // [E]; bias null: none
  double eps;
};

// w x + bias; w [N, K] contiguous.
struct Projection {
  int64_t N, K;
  const float *weight, *bias;  // bias null: none
};

// Rows of width numbers -> norm(x + residual), x + residual or norm(x).
struct NormForward {
  int64_t rows, width;
  const float *x, *residual;   // residual null: none
  const float *weight, *bias;  // weight null: no norm
  double eps;
  float* output;  // may be x or residual
};

// Keys and values of every token so far, [B, H, length, D] each.
struct AttentionCache {
  float *keys, *values;  // null: none
  int64_t length;
  int64_t past;  // so many are there, those of x are put after them; -1: all are there
};

// f: attention of the projected heads, projected.
struct AttentionSublayer {
  int64_t B, L, S, E, H;    // packed: L rows in all
  bool batch_first;         // rows are [B, L], else [L, B]
  const float *x, *memory;  // [rows, E]; memory null: keys and values are those of x
  Projection in, out;       // in: [3 E, E]
  Norm norm;
  AttentionCache cache;
  float* weights;  // [B, H, L, S], or [B, L, S] averaged over the heads; null: not wanted
  bool averaged;
  AttentionCall call;  // mask, bias and causal of it alone
  float* output;       // [rows, E]
};

// f: two products with an activation in between.
struct FeedForwardSublayer {
  int64_t rows;
  const float* x;  // [rows, E]
  Projection in, out;
  Activation activation;
  Norm norm;
  float* output;  // [rows, E]
};

}  // namespace fastdl
