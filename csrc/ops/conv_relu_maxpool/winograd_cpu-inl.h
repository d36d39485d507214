// The Winograd kernels, in the order they build on each other. Included by foreach_isa.h: no include guard.

// clang-format off
#include "common/cpu/gemm-inl.h"
#include "common/cpu/math-inl.h"
#include "common/cpu/math_activation-inl.h"
#include "ops/conv_relu_maxpool/bias_relu_maxpool_window-inl.h"
#include "ops/conv2d/epilogue-inl.h"
#include "ops/conv_relu_maxpool/winograd_tile4-inl.h"
#include "ops/conv_relu_maxpool/winograd_tile6-inl.h"
#include "ops/conv_relu_maxpool/winograd_transforms-inl.h"
#include "ops/conv_relu_maxpool/winograd_stage-inl.h"
#include "ops/conv_relu_maxpool/winograd_stage_gradient-inl.h"
#include "ops/conv_relu_maxpool/winograd_prefetch-inl.h"
#include "ops/conv_relu_maxpool/winograd_products-inl.h"
#include "ops/conv_relu_maxpool/winograd_weight-inl.h"
#include "ops/conv_relu_maxpool/winograd_emit-inl.h"
#include "ops/conv_relu_maxpool/winograd_store-inl.h"
#include "ops/conv_relu_maxpool/winograd_convolution-inl.h"
#include "ops/conv_relu_maxpool/winograd_forward-inl.h"
#include "ops/conv_relu_maxpool/winograd_weight_gradient-inl.h"
#include "ops/conv_relu_maxpool/winograd_weight_gradient_sum-inl.h"
#include "ops/conv_relu_maxpool/winograd_backward-inl.h"
// clang-format on

inline constexpr WinogradKernels kWinograd = {forward, conv2d, backward, packed_floats, pack};
