// The CUDA operators of attention: tensors in, checked; outputs allocated; kernels enqueued on the current
// stream; nothing computed. cu_seqlens stay on the device, unchecked: rows of no sequence are 0.
#include "common/cuda_torch_glue.h"
#include "ops/attention/attention_args.h"
#include "ops/attention/attention_cuda.h"

namespace fastdl {
namespace {

void check_served(const AttentionCall& c) {
  const char* refusal = c.hopper ? cuda::attention_hopper_refusal(c) : cuda::attention_refusal(c);
  check(refusal == nullptr, "attention: ", refusal == nullptr ? "" : refusal);
}

// Rows that no tensor map describes are copied.
void align(Tensor& t, const cuda::HopperRows& rows, const void*& first, AttentionStrides& strides) {
  if (cuda::attention_hopper_reads(rows)) return;
  Tensor copy = empty_contiguous({t.size(0), t.size(1), t.size(2), t.size(3)}, t.scalar_type(), t);
  torch::stable::copy_(copy, t);
  t = attention_rows(copy, strides);
  first = t.const_data_ptr();
}

void align_rows(AttentionTensors& kept, AttentionCall& c) {
  align(kept.q, cuda::attention_hopper_q(c), c.q, c.q_strides);
  align(kept.k, cuda::attention_hopper_k(c), c.k, c.k_strides);
  align(kept.v, cuda::attention_hopper_v(c), c.v, c.v_strides);
}

std::tuple<Tensor, Tensor> forward(Tensor q, Tensor k, Tensor v, std::optional<Tensor> mask,
                                   std::optional<Tensor> bias, std::optional<Tensor> alibi_slopes,
                                   std::optional<Tensor> sink, std::optional<Tensor> seed,
                                   std::optional<Tensor> cu_seqlens_q, std::optional<Tensor> cu_seqlens_k,
                                   IntList integers, std::vector<double> numbers) {
  const OnDevice device(q);
  const AttentionInputs inputs{q, k, v, mask, bias, alibi_slopes, sink, seed, cu_seqlens_q, cu_seqlens_k};
  AttentionForward args;
  AttentionTensors kept = attention_call(inputs, integers, numbers, args.c);
  check_served(args.c);
  if (args.c.hopper) align_rows(kept, args.c);
  AttentionOutput result = attention_output(args.c, kept.q);
  if (cu_seqlens_q.has_value()) torch::stable::zero_(result.output), torch::stable::zero_(result.lse);
  args.output = result.output.mutable_data_ptr(),
  args.lse = static_cast<double*>(result.lse.mutable_data_ptr());
  if (result.lse.numel() == 0) return {result.output, result.lse};
  const int64_t bytes = cuda::attention_forward_workspace(args.c);
  const Tensor partials = bytes > 0 ? workspace(bytes, q) : result.lse;
  check_launch(cuda::attention_forward(args, partials.mutable_data_ptr(), device.stream()), "attention");
  return {result.output, result.lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    Tensor grad_output, std::optional<Tensor> grad_lse, Tensor q, Tensor k, Tensor v, Tensor output,
    Tensor lse, std::optional<Tensor> mask, std::optional<Tensor> bias, std::optional<Tensor> alibi_slopes,
    std::optional<Tensor> sink, std::optional<Tensor> seed, std::optional<Tensor> cu_seqlens_q,
    std::optional<Tensor> cu_seqlens_k, IntList integers, std::vector<double> numbers, bool need_bias,
    bool need_sink) {
  const OnDevice device(q);
  const AttentionInputs inputs{q, k, v, mask, bias, alibi_slopes, sink, seed, cu_seqlens_q, cu_seqlens_k};
  AttentionBackward args = {};
  const AttentionTensors kept = attention_call(inputs, integers, numbers, args.c);
  check_served(args.c);
  const AttentionSaved saved = attention_saved({grad_output, output, lse, grad_lse}, kept.q, args);
  AttentionGradients result = attention_gradients(inputs, need_bias, need_sink, args);
  if (cu_seqlens_q.has_value())
    for (Tensor* t : {&result.grad_q, &result.grad_k, &result.grad_v}) torch::stable::zero_(*t);
  const Tensor values = workspace(cuda::attention_backward_workspace(args.c), q);
  check_launch(cuda::attention_backward(args, values.mutable_data_ptr(), device.stream()),
               "attention_backward");
  const Tensor grad_bias =
      need_bias ? torch::stable::to(result.grad_bias, q.scalar_type()) : result.grad_bias;
  return {result.grad_q, result.grad_k, result.grad_v, grad_bias, result.grad_sink};
}

}  // namespace
}  // namespace fastdl

STABLE_TORCH_LIBRARY_IMPL(fastdl, CUDA, m) {
  m.impl("attention", TORCH_BOX(&fastdl::forward));
  m.impl("attention_backward", TORCH_BOX(&fastdl::backward));
}
