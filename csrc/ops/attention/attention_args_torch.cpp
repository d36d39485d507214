#include <algorithm>

#include "ops/attention/attention_args.h"

namespace fastdl {
namespace {

using torch::headeronly::ScalarType;

bool same_device(const Tensor& t, const Tensor& like) {
  return t.is_cuda() == like.is_cuda() && t.get_device_index() == like.get_device_index();
}

void check_tensor(const char* name, const Tensor& t, const Tensor& q, int64_t rank) {
  check(t.dim() == rank, name, " must have ", rank, " dimensions, got ", shape_text(t));
  check(t.scalar_type() == q.scalar_type(), name, " must have the dtype of q");
  check(same_device(t, q), name, " must be on the device of q");
}

// A tensor of floats or integers that is read whole.
Tensor whole(const char* name, const Tensor& t, const Tensor& q, ScalarType dtype, int64_t count) {
  check(same_device(t, q), name, " must be on the device of q");
  check(t.scalar_type() == dtype, name, " has the wrong dtype");
  check(t.numel() == count, name, " must have ", count, " elements, got ", t.numel());
  return torch::stable::contiguous(t);
}

// Strides of a tensor that broadcasts to [B, H, L_q, L_k].
AttentionStrides broadcast_strides(const char* name, const Tensor& t, const Tensor& q,
                                   const AttentionCall& c) {
  const int64_t full[4] = {c.B, c.H, c.L_q, c.L_k};
  check(t.dim() == 4 && same_device(t, q), name, " must have 4 dimensions on the device of q, got ",
        shape_text(t));
  int64_t strides[4];
  for (int i = 0; i < 4; ++i) {
    check(t.size(i) == 1 || t.size(i) == full[i], name,
          " does not broadcast to [B, H, L_q, L_k]: ", shape_text(t));
    strides[i] = t.size(i) == 1 ? 0 : t.stride(i);
  }
  return {strides[0], strides[1], strides[2], strides[3]};
}

void numbers_of(const IntList& integers, const std::vector<double>& numbers, bool packed, AttentionCall& c) {
  check(integers.size() == 6 && numbers.size() == 3, "attention takes 6 integers and 3 numbers");
  check(integers[0] >= 0 && integers[0] <= 2, "causal must be 0, 1 or 2");
  c.causal = static_cast<Causal>(integers[0]);
  c.window_left = integers[1], c.window_right = integers[2];
  c.max_q = packed ? std::clamp<int64_t>(integers[3], 0, c.L_q) : c.L_q;
  c.max_k = packed ? std::clamp<int64_t>(integers[4], 0, c.L_k) : c.L_k;
  c.decode = integers[5] == 1, c.short_keys = integers[5] == 2, c.hopper = integers[5] == 3;
  c.scale = static_cast<float>(numbers[0]), c.softcap = static_cast<float>(numbers[1]);
  c.dropout_p = static_cast<float>(numbers[2]);
  check(c.dropout_p >= 0 && c.dropout_p < 1, "dropout_p must be at least 0 and below 1");
}

void sizes_of_call(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionInputs& inputs,
                   AttentionCall& c) {
  const bool packed = inputs.cu_seqlens_q.has_value();
  const int heads = 1, rows = packed ? 0 : 2, last = packed ? 2 : 3;
  c.B = packed ? inputs.cu_seqlens_q->numel() - 1 : q.size(0);
  c.H = q.size(heads), c.H_kv = k.size(heads), c.L_q = q.size(rows), c.L_k = k.size(rows);
  c.D = q.size(last), c.D_v = v.size(last);
  check(k.size(last) == c.D && v.size(heads) == c.H_kv && v.size(rows) == c.L_k,
        "k and v do not fit q: ", shape_text(q), shape_text(k), shape_text(v));
  check(packed || (k.size(0) == c.B && v.size(0) == c.B), "q, k and v must have one batch size");
  check(c.H_kv > 0 && c.H % c.H_kv == 0, "the heads of k must divide those of q");
}

}  // namespace

Tensor attention_rows(const Tensor& t, AttentionStrides& strides) {
  const int64_t last = t.dim() - 1;
  const Tensor rows = t.stride(last) == 1 || t.size(last) <= 1 ? t : torch::stable::contiguous(t);
  if (last == 3)
    strides = {rows.stride(0), rows.stride(1), rows.stride(2), 1};
  else
    strides = {0, rows.stride(1), rows.stride(0), 1};
  return rows;
}

void attention_masks(const std::optional<Tensor>& mask, const std::optional<Tensor>& bias, const Tensor& q,
                     AttentionCall& c) {
  if (mask) {
    check(mask->scalar_type() == ScalarType::Bool, "mask must be bool");
    c.mask_strides = broadcast_strides("mask", *mask, q, c);
    c.mask = static_cast<const uint8_t*>(mask->const_data_ptr());
  }
  if (bias) {
    check(bias->scalar_type() == q.scalar_type(), "bias must have the dtype of q");
    c.bias_strides = broadcast_strides("bias", *bias, q, c);
    c.bias = bias->const_data_ptr();
  }
}

AttentionTensors attention_call(const AttentionInputs& inputs, const IntList& integers,
                                const std::vector<double>& numbers, AttentionCall& c) {
  const bool packed = inputs.cu_seqlens_q.has_value();
  check(packed == inputs.cu_seqlens_k.has_value(), "cu_seqlens_q and cu_seqlens_k go together");
  const int64_t rank = packed ? 3 : 4;
  check_tensor("q", inputs.q, inputs.q, rank), check_tensor("k", inputs.k, inputs.q, rank);
  check_tensor("v", inputs.v, inputs.q, rank);
  c = {};
  c.dtype = dtype_of(inputs.q);
  sizes_of_call(inputs.q, inputs.k, inputs.v, inputs, c);
  numbers_of(integers, numbers, packed, c);
  AttentionTensors kept{attention_rows(inputs.q, c.q_strides),
                        attention_rows(inputs.k, c.k_strides),
                        attention_rows(inputs.v, c.v_strides),
                        {}};
  c.q = kept.q.const_data_ptr(), c.k = kept.k.const_data_ptr(), c.v = kept.v.const_data_ptr();
  const auto keep = [&](Tensor t) {
    kept.others.push_back(t);
    return kept.others.back().const_data_ptr();
  };
  if (packed) {
    const ScalarType kind = inputs.cu_seqlens_q->scalar_type();
    check(kind == ScalarType::Int || kind == ScalarType::Long, "cu_seqlens must be int32 or int64");
    c.cu_seqlens_64 = kind == ScalarType::Long;
    c.cu_seqlens_q = keep(whole("cu_seqlens_q", *inputs.cu_seqlens_q, inputs.q, kind, c.B + 1));
    c.cu_seqlens_k = keep(whole("cu_seqlens_k", *inputs.cu_seqlens_k, inputs.q, kind, c.B + 1));
    check(!inputs.mask && !inputs.bias, "mask and bias need dense q, k and v");
  }
  attention_masks(inputs.mask, inputs.bias, inputs.q, c);
  if (inputs.alibi_slopes) {
    const bool one_each = inputs.alibi_slopes->dim() == 2;
    c.alibi_stride_b = one_each ? c.H : 0;
    c.alibi_slopes = static_cast<const float*>(keep(whole("alibi_slopes", *inputs.alibi_slopes, inputs.q,
                                                          ScalarType::Float, one_each ? c.B * c.H : c.H)));
  }
  if (inputs.sink)
    c.sink = static_cast<const float*>(keep(whole("sink", *inputs.sink, inputs.q, ScalarType::Float, c.H)));
  check(c.dropout_p == 0 || inputs.seed.has_value(), "dropout needs a seed");
  if (inputs.seed)
    c.seed = static_cast<const int64_t*>(keep(whole("seed", *inputs.seed, inputs.q, ScalarType::Long, 1)));
  return kept;
}

AttentionOutput attention_output(const AttentionCall& c, const Tensor& q) {
  if (c.cu_seqlens_q != nullptr)
    return {empty_contiguous({c.L_q, c.H, c.D_v}, q.scalar_type(), q),
            empty_contiguous({c.H, c.L_q}, ScalarType::Double, q)};
  return {empty_contiguous({c.B, c.H, c.L_q, c.D_v}, q.scalar_type(), q),
          empty_contiguous({c.B, c.H, c.L_q}, ScalarType::Double, q)};
}

AttentionSaved attention_saved(const AttentionArrived& arrived, const Tensor& q, AttentionBackward& args) {
  const AttentionCall& c = args.c;
  const bool packed = c.cu_seqlens_q != nullptr;
  const IntList rows = packed ? IntList{c.L_q, c.H} : IntList{c.B, c.H, c.L_q};
  for (const Tensor* t : {&arrived.grad_output, &arrived.output}) {
    check_tensor("grad_output and output", *t, q, static_cast<int64_t>(rows.size()) + 1);
    for (size_t i = 0; i < rows.size(); ++i)
      check(t->size(static_cast<int64_t>(i)) == rows[i],
            "grad_output and output do not fit q: ", shape_text(*t));
    check(t->size(t->dim() - 1) == c.D_v, "grad_output and output do not fit v: ", shape_text(*t));
  }
  AttentionSaved saved{attention_rows(arrived.grad_output, args.grad_output_strides),
                       torch::stable::contiguous(arrived.output),
                       whole("lse", arrived.lse, q, ScalarType::Double, (packed ? 1 : c.B) * c.H * c.L_q),
                       arrived.lse};
  if (arrived.grad_lse) {
    saved.grad_lse = whole("grad_lse", *arrived.grad_lse, q, ScalarType::Double, saved.lse.numel());
    args.grad_lse = static_cast<const double*>(saved.grad_lse.const_data_ptr());
  }
  args.grad_output = saved.grad_output.const_data_ptr();
  args.output = saved.output.const_data_ptr();
  args.lse = static_cast<const double*>(saved.lse.const_data_ptr());
  return saved;
}

AttentionGradients attention_gradients(const AttentionInputs& inputs, bool need_bias, bool need_sink,
                                       AttentionBackward& args) {
  const auto like = [](const Tensor& t) {
    IntList sizes;
    for (int64_t i = 0; i < t.dim(); ++i) sizes.push_back(t.size(i));
    return empty_contiguous(sizes, t.scalar_type(), t);
  };
  const Tensor none = empty_contiguous({0}, inputs.q.scalar_type(), inputs.q);
  const Tensor no_sink = empty_contiguous({need_sink ? args.c.H : 0}, ScalarType::Float, inputs.q);
  AttentionGradients result{like(inputs.q), like(inputs.k), like(inputs.v), none, no_sink};
  args.grad_q = result.grad_q.mutable_data_ptr(), args.grad_k = result.grad_k.mutable_data_ptr();
  args.grad_v = result.grad_v.mutable_data_ptr();
  if (need_bias) {
    check(inputs.bias.has_value(), "a gradient of no bias is asked for");
    IntList sizes;
    for (int i = 0; i < 4; ++i) sizes.push_back(args.bias_sizes[i] = inputs.bias->size(i));
    result.grad_bias = empty_contiguous(sizes, ScalarType::Float, inputs.q);
    torch::stable::zero_(result.grad_bias);
    args.grad_bias = static_cast<float*>(result.grad_bias.mutable_data_ptr());
  }
  if (need_sink) {
    check(inputs.sink.has_value(), "a gradient of no sink is asked for");
    torch::stable::zero_(result.grad_sink);
    args.grad_sink = static_cast<float*>(result.grad_sink.mutable_data_ptr());
  }
  return result;
}

}  // namespace fastdl
