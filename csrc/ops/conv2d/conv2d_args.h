// Tensors -> the kernels' argument structs, for the CPU and the CUDA operators alike: every check memory
// safety depends on. Included by *_torch.cpp alone.
#pragma once
#include <optional>

#include "common/torch_glue.h"
#include "ops/conv2d/conv2d.h"

namespace fastdl {

// A tensor of the epilogue: [C_out], contiguous.
std::optional<Tensor> channel_values(const char* name, const std::optional<Tensor>& t, const Tensor& x,
                                     int64_t C_out);
// The residual in the memory format of the output.
std::optional<Tensor> image_like(const std::optional<Tensor>& residual, const Tensor& output);

// Of the codes of fastdl/ops/conv2d/activations.py.
Activation conv2d_activation(int64_t code);

// One call of the pass over a finished convolution: what keeps its tensors alive, and what a kernel is given.
struct EpilogueCall {
  std::optional<Tensor> bias, scale, residual;
  Conv2dEpilogue args;
};
EpilogueCall epilogue_call(const Tensor& y, const std::optional<Tensor>& bias,
                           const std::optional<Tensor>& scale, const std::optional<Tensor>& residual,
                           int64_t activation);

}  // namespace fastdl
