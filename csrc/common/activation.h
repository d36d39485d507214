// The activations that kernels apply to what they have summed.
#pragma once

namespace fastdl {

// The codes of fastdl/ops/linear/activations.py and fastdl/ops/conv2d/activations.py.
enum class Activation : int {
  kNone = 0,
  kRelu,
  kGelu,
  kGeluTanh,
  kSilu,
  kTanh,
  kSigmoid,
  // of convolutions alone
  kRelu6,
  kHardswish
};

}  // namespace fastdl
