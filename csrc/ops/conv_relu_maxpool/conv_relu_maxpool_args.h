// Tensors -> the kernels' argument structs, for the CPU and the CUDA operators alike: every check memory
// safety depends on, every output allocation. Included by *_torch.cpp alone.
#pragma once
#include <optional>
#include <tuple>

#include "common/torch_glue.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool.h"

namespace fastdl {

struct ConvInputs {
  Tensor x, weight;  // x: contiguous or channels_last; weight: contiguous unless channels_last is allowed
  std::optional<Tensor> bias;
};
struct ConvOutput {
  Tensor conv;  // contiguous or channels_last
  std::optional<Tensor> bias;
};
struct PooledOutput {
  Tensor output, record;
  bool has_record;
};
struct PooledGradient {
  Tensor grad_output, saved;  // one memory format
};
struct ConvGradients {
  Tensor grad_input, grad_weight, grad_bias;
  bool need_input, need_weight, need_bias;
};
struct ExpandedGradient {
  Tensor grad_conv, grad_bias;
};

// `packed`: stride, padding, dilation (two ints each), groups, then the pool.
void unpack(const IntList& packed, const Tensor& x, const Tensor& weight, ConvGeometry& conv,
            PoolGeometry& pool);
// `packed`: size, stride, padding, dilation (two ints each), ceil_mode; empty without a pool.
PoolGeometry unpack_pool(const IntList& packed, int64_t CH, int64_t CW);

// t itself where it is dense in that format
Tensor in_memory_format(const Tensor& t, bool channels_last);

ConvInputs conv_inputs(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                       const ConvGeometry& conv, bool channels_last_weight = false);
ConvOutput conv_output(const Tensor& conv, const std::optional<Tensor>& bias);
PooledOutput pooled_output(const Tensor& like, int64_t N, int64_t C, const PoolGeometry& pool,
                           bool save_record);
PooledGradient pooled_gradient(const Tensor& grad_output, const Tensor& saved, int64_t N, int64_t C,
                               const PoolGeometry& pool);
ConvGradients conv_gradients(const ConvInputs& inputs, bool need_input, bool need_weight, bool need_bias);
ExpandedGradient expanded_gradient(const PooledGradient& gradient, int64_t CH, int64_t CW);

void fill(ConvReluMaxpoolForward& args, const ConvInputs& inputs, const PooledOutput& result);
void fill(ConvReluMaxpoolBackward& args, const ConvInputs& inputs, const PooledGradient& gradient,
          const ConvGradients& result);
void fill(BiasReluMaxpoolForward& args, const ConvOutput& input, const PooledOutput& result);
void fill(BiasReluMaxpoolBackward& args, const PooledGradient& gradient, int64_t CH, int64_t CW,
          const ExpandedGradient& result);

}  // namespace fastdl
