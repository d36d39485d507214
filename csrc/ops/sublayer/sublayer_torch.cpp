// The CPU operators of sublayer: tensors in, checked; outputs allocated; kernels called; nothing computed.
#include "ops/attention/attention_args.h"
#include "ops/linear/linear_args.h"
#include "ops/sublayer/sublayer_cpu.h"

namespace fastdl {
namespace {

using MaybeTensor = std::optional<Tensor>;

// Dense float32 tensors of a call, and what keeps copies of those that were not.
struct Dense {
  std::vector<Tensor> kept;

  const float* of(const char* name, const Tensor& t, const IntList& sizes) {
    bool same = t.dim() == static_cast<int64_t>(sizes.size());
    for (size_t i = 0; same && i < sizes.size(); ++i) same = t.size(static_cast<int64_t>(i)) == sizes[i];
    check(same, name, " must have shape ", shape_text(sizes), ", got ", shape_text(t));
    check(dtype_of(t) == DType::kFloat32 && t.is_cpu(), name, " must be float32 on the CPU");
    kept.push_back(as_contiguous(t));
    return static_cast<const float*>(kept.back().const_data_ptr());
  }
  const float* of(const char* name, const MaybeTensor& t, const IntList& sizes) {
    return t ? of(name, *t, sizes) : nullptr;
  }
};

Norm norm_of(Dense& dense, const MaybeTensor& weight, const MaybeTensor& bias, int64_t around, double eps,
             int64_t E) {
  check(around >= 0 && around <= 2, "around must be 0, 1 or 2, got ", around);
  check(around == 0 || weight.has_value(), "a norm needs its weight");
  return {static_cast<Around>(around), dense.of("norm_weight", weight, {E}), dense.of("norm_bias", bias, {E}),
          eps};
}

struct Projections {
  Tensor in_weight;
  MaybeTensor in_bias;
  Tensor out_weight;
  MaybeTensor out_bias;
};

// Everything but masks, cache and output.
AttentionSublayer attention_args(Dense& dense, const Tensor& x, const MaybeTensor& memory,
                                 const Projections& projections, const MaybeTensor& norm_weight,
                                 const MaybeTensor& norm_bias, const IntList& structure, double eps) {
  check(structure.size() == 5, "attention_sublayer takes 5 integers");
  check(x.dim() == 3 && (!memory || memory->dim() == 3), "x and memory must have 3 dimensions, got ",
        shape_text(x));
  const int64_t H = structure[0], E = x.size(2), causal = structure[3];
  const bool batch_first = structure[1] != 0;
  const int batch = batch_first ? 0 : 1;
  AttentionSublayer a = {};
  a.B = x.size(batch), a.L = x.size(1 - batch), a.S = memory ? memory->size(1 - batch) : a.L;
  a.E = E, a.H = H, a.batch_first = batch_first;
  check(H > 0 && E > 0 && E % H == 0, "num_heads must divide the width ", E, ", got ", H);
  check(causal >= 0 && causal <= 2, "causal must be 0, 1 or 2, got ", causal);
  a.x = dense.of("x", x, sizes_of(x));
  a.memory = dense.of("memory", memory, batch_first ? IntList{a.B, a.S, E} : IntList{a.S, a.B, E});
  a.in = {3 * E, E, dense.of("in_proj_weight", projections.in_weight, {3 * E, E}),
          dense.of("in_proj_bias", projections.in_bias, {3 * E})};
  a.out = {E, E, dense.of("out_proj_weight", projections.out_weight, {E, E}),
           dense.of("out_proj_bias", projections.out_bias, {E})};
  a.norm = norm_of(dense, norm_weight, norm_bias, structure[2], eps, E);
  a.call.B = a.B, a.call.H = H, a.call.L_q = a.L, a.call.L_k = a.S;
  a.call.causal = static_cast<Causal>(causal), a.call.window_left = a.call.window_right = -1;
  a.call.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(E / H)));
  a.call.decode = structure[4] != 0;
  return a;
}

Tensor computed(AttentionSublayer& a, const Tensor& x) {
  const Tensor output = empty_contiguous(sizes_of(x), x.scalar_type(), x);
  a.output = static_cast<float*>(output.mutable_data_ptr());
  cpu::attention_sublayer(a, torch_thread_pool());
  return output;
}

Tensor attention_sublayer(Tensor x, MaybeTensor memory, Tensor in_proj_weight, MaybeTensor in_proj_bias,
                          Tensor out_proj_weight, MaybeTensor out_proj_bias, MaybeTensor norm_weight,
                          MaybeTensor norm_bias, MaybeTensor mask, MaybeTensor bias, IntList structure,
                          double eps) {
  Dense dense;
  AttentionSublayer a =
      attention_args(dense, x, memory, {in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias},
                     norm_weight, norm_bias, structure, eps);
  attention_masks(mask, bias, x, a.call);
  return computed(a, x);
}

// Rows of x of sequence b: cu_seqlens[b] .. cu_seqlens[b + 1].
Tensor packed_attention_sublayer(Tensor x, Tensor cu_seqlens, Tensor in_proj_weight, MaybeTensor in_proj_bias,
                                 Tensor out_proj_weight, MaybeTensor out_proj_bias, MaybeTensor norm_weight,
                                 MaybeTensor norm_bias, IntList structure, double eps) {
  const std::optional<Tensor> none;
  Dense dense;
  AttentionSublayer a =
      attention_args(dense, x, none, {in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias},
                     norm_weight, norm_bias, structure, eps);
  check(a.batch_first && a.B == 1, "x must have shape [1, total, E], got ", shape_text(x));
  check(cu_seqlens.dim() == 1 && cu_seqlens.numel() > 0, "cu_seqlens must have shape [B + 1], got ",
        shape_text(cu_seqlens));
  check(cu_seqlens.scalar_type() == torch::headeronly::ScalarType::Long && cu_seqlens.is_cpu(),
        "cu_seqlens must be int64 on the CPU");
  const Tensor starts = as_contiguous(cu_seqlens);
  const int64_t* at = static_cast<const int64_t*>(starts.const_data_ptr());
  a.B = a.call.B = starts.numel() - 1;
  check(at[0] == 0 && at[a.B] == a.L, "cu_seqlens must go from 0 to ", a.L);
  for (int64_t b = 0; b < a.B; ++b) {
    check(at[b] <= at[b + 1], "cu_seqlens must not fall");
    a.call.max_q = a.call.max_k = std::max(a.call.max_q, at[b + 1] - at[b]);
  }
  a.call.cu_seqlens_q = a.call.cu_seqlens_k = at, a.call.cu_seqlens_64 = true;
  return computed(a, x);
}

std::tuple<Tensor, Tensor> weighted_attention_sublayer(Tensor x, MaybeTensor memory, Tensor in_proj_weight,
                                                       MaybeTensor in_proj_bias, Tensor out_proj_weight,
                                                       MaybeTensor out_proj_bias, MaybeTensor norm_weight,
                                                       MaybeTensor norm_bias, MaybeTensor mask,
                                                       MaybeTensor bias, IntList structure, double eps,
                                                       bool averaged) {
  Dense dense;
  AttentionSublayer a =
      attention_args(dense, x, memory, {in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias},
                     norm_weight, norm_bias, structure, eps);
  attention_masks(mask, bias, x, a.call);
  const Tensor weights =
      empty_contiguous(averaged ? IntList{a.B, a.L, a.S} : IntList{a.B, a.H, a.L, a.S}, x.scalar_type(), x);
  a.weights = static_cast<float*>(weights.mutable_data_ptr()), a.averaged = averaged;
  return {computed(a, x), weights};
}

// [B, H, length, D] in memory that is written.
float* cache_of(const char* name, Tensor& t, const AttentionSublayer& a, const Tensor& like) {
  check(t.dim() == 4 && t.size(0) == a.B && t.size(1) == a.H && t.size(3) == a.E / a.H, name,
        " must have shape [B, H, length, D], got ", shape_text(t));
  check_alike(t, like, name);
  check(t.is_contiguous(), name, " must be contiguous");
  return static_cast<float*>(t.mutable_data_ptr());
}

Tensor cached_attention_sublayer(Tensor x, Tensor keys, Tensor values, int64_t past, Tensor in_proj_weight,
                                 MaybeTensor in_proj_bias, Tensor out_proj_weight, MaybeTensor out_proj_bias,
                                 MaybeTensor norm_weight, MaybeTensor norm_bias, MaybeTensor mask,
                                 IntList structure, double eps) {
  const std::optional<Tensor> none;
  Dense dense;
  AttentionSublayer a =
      attention_args(dense, x, none, {in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias},
                     norm_weight, norm_bias, structure, eps);
  check(a.batch_first, "a cache needs batch_first");
  a.cache = {cache_of("keys", keys, a, x), cache_of("values", values, a, x), keys.size(2), past};
  check(values.size(2) == keys.size(2), "keys and values must have one length, got ", shape_text(values));
  check(past >= -1 && (past < 0 || past <= keys.size(2) - a.L), "the cache of ", keys.size(2),
        " tokens has no room for ", a.L, " after ", past);
  a.call.causal = past < 0 ? Causal::kNone : Causal::kBottomRight;
  a.S = a.call.L_k = past < 0 ? keys.size(2) : past + a.L;
  attention_masks(mask, none, x, a.call);
  return computed(a, x);
}

Tensor feed_forward_sublayer(Tensor x, Tensor weight_1, MaybeTensor bias_1, Tensor weight_2,
                             MaybeTensor bias_2, MaybeTensor norm_weight, MaybeTensor norm_bias,
                             int64_t activation, int64_t around, double eps) {
  check(x.dim() >= 1 && weight_1.dim() == 2, "weight_1 must have two dimensions, got ", shape_text(weight_1));
  const int64_t E = x.size(x.dim() - 1), hidden = weight_1.size(0);
  check(E > 0 && hidden > 0, "x and weight_1 must not be empty along their features");
  Dense dense;
  FeedForwardSublayer a = {};
  a.rows = x.numel() / E;
  a.x = dense.of("x", x, sizes_of(x));
  a.in = {hidden, E, dense.of("weight_1", weight_1, {hidden, E}), dense.of("bias_1", bias_1, {hidden})};
  a.out = {E, hidden, dense.of("weight_2", weight_2, {E, hidden}), dense.of("bias_2", bias_2, {E})};
  a.activation = activation_of(activation);
  a.norm = norm_of(dense, norm_weight, norm_bias, around, eps, E);
  const Tensor output = empty_contiguous(sizes_of(x), x.scalar_type(), x);
  a.output = static_cast<float*>(output.mutable_data_ptr());
  cpu::feed_forward_sublayer(a, torch_thread_pool());
  return output;
}

}  // namespace
}  // namespace fastdl

STABLE_TORCH_LIBRARY_IMPL(fastdl, CPU, m) {
  m.impl("attention_sublayer", TORCH_BOX(&fastdl::attention_sublayer));
  m.impl("packed_attention_sublayer", TORCH_BOX(&fastdl::packed_attention_sublayer));
  m.impl("weighted_attention_sublayer", TORCH_BOX(&fastdl::weighted_attention_sublayer));
  m.impl("cached_attention_sublayer", TORCH_BOX(&fastdl::cached_attention_sublayer));
  m.impl("feed_forward_sublayer", TORCH_BOX(&fastdl::feed_forward_sublayer));
}
