// The activations of one value, in float or double; a NaN passes.
#pragma once
#include "common/activation.h"
#include "common/cuda/device.cuh"

namespace fastdl::cuda {

template <class C>
FD_DEVICE C sigmoid(C x) {
  return C(1) / (C(1) + exp(-x));
}

template <Activation kActivation, class C>
FD_DEVICE C activate(C x) {
  constexpr C kSqrtHalf = C(0.70710678118654752440), kSqrtTwoOverPi = C(0.79788456080286535588);
  if constexpr (kActivation == Activation::kRelu) return x <= C(0) ? C(0) : x;
  if constexpr (kActivation == Activation::kTanh) return tanh(x);
  if constexpr (kActivation == Activation::kSigmoid) return sigmoid(x);
  if constexpr (kActivation == Activation::kSilu) return x * sigmoid(x);
  if constexpr (kActivation == Activation::kGelu) return C(0.5) * x * (C(1) + erf(x * kSqrtHalf));
  if constexpr (kActivation == Activation::kGeluTanh)
    return C(0.5) * x * (C(1) + tanh(kSqrtTwoOverPi * (x + C(0.044715) * x * x * x)));
  if constexpr (kActivation == Activation::kRelu6) return x <= C(0) ? C(0) : x >= C(6) ? C(6) : x;
  if constexpr (kActivation == Activation::kHardswish)
    return x * (x <= C(-3) ? C(0) : x >= C(3) ? C(6) : x + C(3)) * C(1.0 / 6);
  return x;
}

}  // namespace fastdl::cuda
