// The implicit GEMM, in the order its parts build on each other. Included by foreach_isa.h: no include guard.

#include "common/cpu/gemm-inl.h"
// clang-format off: in the order of use
#include "ops/conv_relu_maxpool/bias_relu_maxpool_window-inl.h"
#include "ops/conv_relu_maxpool/bias_relu_maxpool_contiguous-inl.h"
#include "common/cpu/math-inl.h"
#include "common/cpu/math_activation-inl.h"
#include "ops/conv2d/epilogue-inl.h"
#include "ops/conv_relu_maxpool/direct_input-inl.h"
#include "ops/conv_relu_maxpool/task-inl.h"
#include "ops/conv_relu_maxpool/implicit_gemm_panels-inl.h"
#include "ops/conv_relu_maxpool/implicit_gemm_planes-inl.h"
#include "ops/conv_relu_maxpool/implicit_gemm_forward-inl.h"
// clang-format on

inline void implicit_gemm_conv2d(const Conv2dForward& args, const ThreadPool& threads) {
  ConvReluMaxpoolForward conv = {};
  conv.conv = args.conv;
  conv.pool.OH = args.conv.CH, conv.pool.OW = args.conv.CW;
  conv.dtype = args.dtype;
  conv.x = args.x, conv.weight = args.weight, conv.bias = args.bias, conv.output = args.output;
  for (int i = 0; i < 4; ++i)
    conv.x_strides[i] = args.x_strides[i], conv.output_strides[i] = args.output_strides[i];
  implicit_gemm(conv, &args, threads);
}

inline void implicit_gemm_forward(const ConvReluMaxpoolForward& args, const ThreadPool& threads) {
  Conv2dForward relu = {};
  relu.bias = args.bias, relu.activation = Activation::kRelu;
  implicit_gemm(args, args.pool.present ? nullptr : &relu, threads);
}

inline constexpr ImplicitGemmKernels kImplicitGemm = {implicit_gemm_forward, implicit_gemm_conv2d};
