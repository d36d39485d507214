// Tensors -> the kernels' argument structs, for the CPU and the CUDA operators alike: every check memory
// safety depends on, every output allocation. Included by *_torch.cpp alone.
#pragma once
#include <optional>
#include <tuple>

#include "common/torch_glue.h"
#include "ops/attention/attention.h"

namespace fastdl {

struct AttentionInputs {
  Tensor q, k, v;
  std::optional<Tensor> mask, bias, alibi_slopes, sink, seed, cu_seqlens_q, cu_seqlens_k;
};

// What the pointers of a call point into.
struct AttentionTensors {
  Tensor q, k, v;
  std::vector<Tensor> others;
};

struct AttentionOutput {
  Tensor output, lse;
};

AttentionTensors attention_call(const AttentionInputs& inputs, const IntList& integers,
                                const std::vector<double>& numbers, AttentionCall& call);
// Pointers and strides of `mask` and `bias`, which must live as long as the call, whose sizes are there.
void attention_masks(const std::optional<Tensor>& mask, const std::optional<Tensor>& bias, const Tensor& q,
                     AttentionCall& call);
AttentionOutput attention_output(const AttentionCall& call, const Tensor& q);

struct AttentionArrived {
  Tensor grad_output, output, lse;
  std::optional<Tensor> grad_lse;
};
struct AttentionSaved {
  Tensor grad_output, output, lse, grad_lse;
};
struct AttentionGradients {
  Tensor grad_q, grad_k, grad_v, grad_bias, grad_sink;  // grad_bias in float32
};

AttentionSaved attention_saved(const AttentionArrived& arrived, const Tensor& q, AttentionBackward& args);
AttentionGradients attention_gradients(const AttentionInputs& inputs, bool need_bias, bool need_sink,
                                       AttentionBackward& args);

// `t` with unit stride in its last dimension, and its strides as [B, H, L, D] or packed [L, H, D].
Tensor attention_rows(const Tensor& t, AttentionStrides& strides);

}  // namespace fastdl
