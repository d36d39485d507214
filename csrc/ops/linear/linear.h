// dropout(activation(x weight^T + bias)): what every backend is given and what it must fill in.
#pragma once
#include <cstdint>

#include "common/activation.h"
#include "common/dtype.h"

namespace fastdl {

constexpr int kActivations = 7;  // the first ones

// Element i of the output, counted row by row, is dropped if word i % 4 of Philox at counter i / 4 is below
// `threshold`; the others are multiplied by `scale`.
struct Dropout {
  bool present;
  uint32_t threshold;
  double scale, keep;  // scale = 1 / keep
  uint64_t seed;
};

struct LinearForward {
  int64_t M, N, K;
  DType dtype;
  Activation activation;
  Dropout dropout;
  const void* x;       // [M, K]
  const void* weight;  // [N, K]
  const void* bias;    // [N] or null
  void* output;        // [M, N]
  void* pre;           // [M, N], what the activation was applied to, or null: not wanted
};

// The same after somebody else's product.
struct LinearActivation {
  int64_t count;
  DType dtype;
  Activation activation;
  Dropout dropout;
  const void* pre;  // [count]
  void* output;     // [count]
};

struct LinearActivationBackward {
  int64_t M, N;
  DType dtype;
  Activation activation;
  Dropout dropout;
  const void* grad_output;  // [M, N]
  const void* saved;        // [M, N]: the output (relu, tanh, sigmoid), pre (gelu, silu), or null (none)
  void* grad_pre;           // [M, N]
  void* grad_bias;          // [N] or null
};

}  // namespace fastdl
