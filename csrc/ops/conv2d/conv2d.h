// activation(scale conv2d(x, weight) + bias + residual): what the kernels are given and must fill in.
// They are those of conv_relu_maxpool: a convolution is the same, and what follows it is in its epilogue.
#pragma once
#include <cstdint>

#include "common/activation.h"
#include "common/dtype.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool.h"

namespace fastdl {

// Strides are in elements, in the order N, C, H, W.
struct Conv2dForward {
  ConvGeometry conv;
  DType dtype;  // of every tensor

  const void* x;  // [N, C, H, W], contiguous or channels_last
  int64_t x_strides[4];
  const void* weight;         // [C_out, C / groups, KH, KW], contiguous
  bool weight_channels_last;  // instead of contiguous: Winograd alone
  const void* bias;           // [C_out] or null
  const void* scale;          // [C_out] or null: ones
  const void* residual;       // strides of output, or null: zeros
  Activation activation;

  void* output;  // [N, C_out, CH, CW], contiguous or channels_last
  int64_t output_strides[4];
  bool training;  // the weight is about to change: nothing made of it is worth keeping
};

// What follows somebody else's convolution, in place.
struct Conv2dEpilogue {
  int64_t N, C, plane;
  DType dtype;
  bool channels_last;  // y and residual [N, plane, C], else [N, C, plane]
  void* y;
  const void* bias;      // [C] or null
  const void* scale;     // [C] or null: ones
  const void* residual;  // or null: zeros
  Activation activation;
};

}  // namespace fastdl
