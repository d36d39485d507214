// The implicit GEMM, in the order its parts build on each other. Included by foreach_isa.h: no include guard.

#include "common/cpu/gemm-inl.h"
// clang-format off: in the order of use
#include "ops/conv_relu_maxpool/bias_relu_maxpool_window-inl.h"
#include "ops/conv_relu_maxpool/bias_relu_maxpool_contiguous-inl.h"
#include "ops/conv_relu_maxpool/direct_input-inl.h"
#include "ops/conv_relu_maxpool/task-inl.h"
#include "ops/conv_relu_maxpool/implicit_gemm_panels-inl.h"
#include "ops/conv_relu_maxpool/implicit_gemm_planes-inl.h"
#include "ops/conv_relu_maxpool/implicit_gemm_forward-inl.h"
// clang-format on
