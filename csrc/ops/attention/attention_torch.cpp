// The CPU operators of attention: tensors in, checked; outputs allocated; kernels called; nothing computed.
#include <algorithm>
#include <initializer_list>

#include "common/torch_glue.h"
#include "ops/attention/attention_args.h"
#include "ops/attention/attention_cpu.h"
#include "ops/attention/attention_span.h"

namespace fastdl {
namespace {

// The longest sequences as cu_seqlens say; whether every row belongs to a sequence. cu_seqlens are not
// trusted.
bool measure_sequences(AttentionCall& c) {
  c.max_q = c.max_k = 0;
  int64_t rows_q = 0, rows_k = 0;
  for (int64_t b = 0; b < c.B; ++b) {
    const AttentionSpan span = attention_span(c, b);
    c.max_q = std::max(c.max_q, span.L_q), c.max_k = std::max(c.max_k, span.L_k);
    // a sequence that begins before the rows so far leaves as many of others out
    if (span.q_first == rows_q) rows_q += span.L_q;
    if (span.k_first == rows_k) rows_k += span.L_k;
  }
  return rows_q == c.L_q && rows_k == c.L_k;
}

// Dense: every row is written. Packed: rows of no sequence are 0.
void prepare_rows(AttentionCall& c, std::initializer_list<Tensor> results) {
  if (c.cu_seqlens_q == nullptr || measure_sequences(c)) return;
  for (Tensor t : results) torch::stable::zero_(t);
}

std::tuple<Tensor, Tensor> attention(Tensor q, Tensor k, Tensor v, std::optional<Tensor> mask,
                                     std::optional<Tensor> bias, std::optional<Tensor> alibi_slopes,
                                     std::optional<Tensor> sink, std::optional<Tensor> seed,
                                     std::optional<Tensor> cu_seqlens_q, std::optional<Tensor> cu_seqlens_k,
                                     IntList integers, std::vector<double> numbers) {
  const AttentionInputs inputs{q, k, v, mask, bias, alibi_slopes, sink, seed, cu_seqlens_q, cu_seqlens_k};
  AttentionForward args;
  const AttentionTensors kept = attention_call(inputs, integers, numbers, args.c);
  check(args.c.dtype != DType::kFloat64, "no CPU kernel for float64");
  const AttentionOutput result = attention_output(args.c, kept.q);
  prepare_rows(args.c, {result.output, result.lse});
  args.output = result.output.mutable_data_ptr(),
  args.lse = static_cast<double*>(result.lse.mutable_data_ptr());
  args.output_strides = cpu::dense_output(args.c);
  if (result.lse.numel() > 0) cpu::attention_forward(args, torch_thread_pool());
  return {result.output, result.lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attention_backward(
    Tensor grad_output, std::optional<Tensor> grad_lse, Tensor q, Tensor k, Tensor v, Tensor output,
    Tensor lse, std::optional<Tensor> mask, std::optional<Tensor> bias, std::optional<Tensor> alibi_slopes,
    std::optional<Tensor> sink, std::optional<Tensor> seed, std::optional<Tensor> cu_seqlens_q,
    std::optional<Tensor> cu_seqlens_k, IntList integers, std::vector<double> numbers, bool need_bias,
    bool need_sink) {
  const AttentionInputs inputs{q, k, v, mask, bias, alibi_slopes, sink, seed, cu_seqlens_q, cu_seqlens_k};
  AttentionBackward args = {};
  const AttentionTensors kept = attention_call(inputs, integers, numbers, args.c);
  check(args.c.dtype != DType::kFloat64, "no CPU kernel for float64");
  const AttentionSaved saved = attention_saved({grad_output, output, lse, grad_lse}, kept.q, args);
  const AttentionGradients result = attention_gradients(inputs, need_bias, need_sink, args);
  prepare_rows(args.c, {result.grad_q, result.grad_k, result.grad_v});
  if (q.numel() + k.numel() + v.numel() > 0) cpu::attention_backward(args, torch_thread_pool());
  const Tensor grad_bias =
      need_bias ? torch::stable::to(result.grad_bias, q.scalar_type()) : result.grad_bias;
  return {result.grad_q, result.grad_k, result.grad_v, grad_bias, result.grad_sink};
}

}  // namespace
}  // namespace fastdl

STABLE_TORCH_LIBRARY_IMPL(fastdl, CPU, m) {
  m.impl("attention", TORCH_BOX(&fastdl::attention));
  m.impl("attention_backward", TORCH_BOX(&fastdl::attention_backward));
}
