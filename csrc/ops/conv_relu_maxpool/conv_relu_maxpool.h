// relu(max_pool2d(conv2d(x, weight)) + bias): what every backend is given and what it must fill in.
#pragma once
#include <cstdint>

#include "common/dtype.h"

namespace fastdl {

// A window whose ReLU is closed: no gradient. Other record bytes are kh * pool_size[1] + kw.
constexpr uint8_t kReluClosed = 255;

struct ConvGeometry {
  int64_t N, C, H, W;     // x      [N, C, H, W]
  int64_t C_out, KH, KW;  // weight [C_out, C / groups, KH, KW]
  int64_t groups;
  int64_t stride[2], padding[2], dilation[2];
  int64_t CH, CW;  // conv   [N, C_out, CH, CW]
};

// What the Winograd kernels compute.
inline bool is_winograd(const ConvGeometry& g) {
  return g.KH == 3 && g.KW == 3 && g.stride[0] == 1 && g.stride[1] == 1 && g.dilation[0] == 1 &&
         g.dilation[1] == 1 && g.groups == 1;
}

struct PoolGeometry {
  bool present;  // false: conv + ReLU, the pooled size is (CH, CW)
  int64_t size[2], stride[2], padding[2], dilation[2];
  int64_t OH, OW;  // output [N, C_out, OH, OW]
};

// Strides are in elements, in the order N, C, H, W. `record` has the strides of `output`.
struct ConvReluMaxpoolForward {
  ConvGeometry conv;
  PoolGeometry pool;
  DType dtype;  // of x, weight, bias and output

  const void* x;  // [N, C, H, W]
  int64_t x_strides[4];
  const void* weight;                 // [C_out, C / groups, KH, KW], contiguous
  const void* bias;                   // [C_out] or null
  bool weight_channels_last = false;  // instead of contiguous: Winograd on CPUs alone

  void* output;  // [N, C_out, OH, OW], contiguous or channels_last
  int64_t output_strides[4];
  uint8_t* record;        // one byte a pooled element, or null: not wanted
  bool training = false;  // the weight is about to change: nothing made of it is worth keeping
};

// Pooled: `record` says where each gradient goes. Not pooled: `output` says where the ReLU is open; for a
// convolution without one there is neither.
struct ConvReluMaxpoolBackward {
  ConvGeometry conv;
  PoolGeometry pool;
  DType dtype;

  const void* grad_output;  // [N, C_out, OH, OW], contiguous or channels_last
  int64_t grad_output_strides[4];
  const uint8_t* record;  // strides of grad_output, or null
  const void* output;     // strides of grad_output, or null
  const void* x;          // [N, C, H, W]
  int64_t x_strides[4];
  const void* weight;                 // [C_out, C / groups, KH, KW], contiguous
  bool weight_channels_last = false;  // instead of contiguous: Winograd on CPUs alone

  void* grad_input;   // strides of x, or null: not wanted
  void* grad_weight;  // contiguous, or null
  void* grad_bias;    // [C_out], or null
};

// relu(max_pool2d(conv) + bias), after somebody else's convolution.
struct BiasReluMaxpoolForward {
  int64_t N, C, CH, CW;
  PoolGeometry pool;
  DType dtype;
  const void* conv;  // [N, C, CH, CW], contiguous or channels_last
  int64_t conv_strides[4];
  const void* bias;  // [C] or null
  void* output;      // [N, C, OH, OW], memory format of conv
  int64_t output_strides[4];
  uint8_t* record;  // strides of output, or null
};

// grad_conv: every pooled gradient at the position its record names, summed where windows overlap.
struct BiasReluMaxpoolBackward {
  int64_t N, C, CH, CW;
  PoolGeometry pool;
  DType dtype;
  const void* grad_output;  // [N, C, OH, OW], contiguous or channels_last
  int64_t grad_output_strides[4];
  const uint8_t* record;  // strides of grad_output, or null (no pool)
  const void* output;     // strides of grad_output, or null (pool)
  void* grad_conv;        // [N, C, CH, CW], memory format of grad_output; every element is written
  int64_t grad_conv_strides[4];
  void* grad_bias;  // [C] or null
};

}  // namespace fastdl
