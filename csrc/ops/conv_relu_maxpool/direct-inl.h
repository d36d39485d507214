// The direct kernels, in the order they build on each other. Included by foreach_isa.h: no include guard.

// clang-format off: in the order of use
#include "ops/conv_relu_maxpool/bias_relu_maxpool_window-inl.h"
#include "ops/conv_relu_maxpool/direct_input-inl.h"
#include "ops/conv_relu_maxpool/task-inl.h"
#include "ops/conv_relu_maxpool/direct_tile-inl.h"
#include "ops/conv_relu_maxpool/narrow_planes-inl.h"
#include "ops/conv_relu_maxpool/write_ahead-inl.h"
#include "ops/conv_relu_maxpool/direct_output-inl.h"
#include "ops/conv_relu_maxpool/direct_planes-inl.h"
#include "ops/conv_relu_maxpool/direct_forward-inl.h"
#include "ops/conv_relu_maxpool/direct_gradient-inl.h"
#include "ops/conv_relu_maxpool/direct_backward-inl.h"
// clang-format on
