// The CPU operators of linear: tensors in, checked; outputs allocated; kernels called; nothing computed.
#include <tuple>

#include "ops/linear/linear_args.h"
#include "ops/linear/linear_cpu.h"

namespace fastdl {
namespace {

Dropout with_seed(Dropout dropout, const std::optional<Tensor>& seed) {
  if (dropout.present) dropout.seed = static_cast<uint64_t>(*static_cast<const int64_t*>(seed->data_ptr()));
  return dropout;
}

std::optional<Tensor> contiguous_bias(const std::optional<Tensor>& bias, int64_t N, const Tensor& like) {
  if (!bias) return std::nullopt;
  check(bias->dim() == 1 && bias->size(0) == N, "bias must have shape [out_features] = [", N, "], got ",
        shape_text(*bias));
  check_alike(*bias, like, "bias");
  return as_contiguous(*bias);
}

std::tuple<Tensor, Tensor> linear(Tensor x, Tensor weight, std::optional<Tensor> bias,
                                  std::optional<Tensor> seed, int64_t activation, double dropout_p,
                                  bool save) {
  check(x.dim() >= 1 && weight.dim() == 2 && x.size(x.dim() - 1) == weight.size(1),
        "weight must have shape [out_features, in_features] with in_features the last size of x ",
        shape_text(x), ", got ", shape_text(weight));
  check_alike(weight, x, "weight");
  check(dtype_of(x) != DType::kFloat64, "no CPU kernel for float64");
  const int64_t N = weight.size(0), K = weight.size(1);
  IntList sizes;
  int64_t M = 1;
  for (int64_t d = 0; d + 1 < x.dim(); ++d) sizes.push_back(x.size(d)), M *= x.size(d);
  sizes.push_back(N);
  const std::optional<Tensor> dense_bias = contiguous_bias(bias, N, x);
  const Tensor dense_x = as_contiguous(x), dense_weight = as_contiguous(weight);
  const Activation a = activation_of(activation);
  const bool save_pre = save && a != Activation::kNone && !by_output(a);
  Tensor output = empty_contiguous(sizes, x.scalar_type(), x);
  Tensor pre = empty_contiguous(save_pre ? sizes : IntList{0}, x.scalar_type(), x);
  LinearForward args{M, N, K, dtype_of(x), a, with_seed(dropout_of(seed, dropout_p, x), seed)};
  args.x = dense_x.data_ptr();
  args.weight = dense_weight.data_ptr();
  args.bias = dense_bias ? dense_bias->data_ptr() : nullptr;
  args.output = output.data_ptr();
  args.pre = save_pre ? pre.data_ptr() : nullptr;
  if (M > 0 && N > 0) cpu::linear_dot_forward(args, torch_thread_pool());
  return {output, pre};
}

Tensor linear_activation(Tensor pre, std::optional<Tensor> seed, int64_t activation, double dropout_p) {
  const Tensor dense = as_contiguous(pre);
  Tensor output = empty_shaped_like(dense);
  LinearActivation args{dense.numel(), dtype_of(pre), activation_of(activation),
                        with_seed(dropout_of(seed, dropout_p, pre), seed)};
  args.pre = dense.data_ptr();
  args.output = output.data_ptr();
  cpu::linear_activation_forward(args, torch_thread_pool());
  return output;
}

void linear_activation_inplace(Tensor values, std::optional<Tensor> seed, int64_t activation,
                               double dropout_p) {
  const ActivationInPlace p =
      activation_in_place(values, with_seed(dropout_of(seed, dropout_p, values), seed), activation);
  cpu::linear_activation_forward(p.args, torch_thread_pool());
  p.finish();
}

std::tuple<Tensor, Tensor> linear_activation_backward(Tensor grad_output, Tensor saved,
                                                      std::optional<Tensor> seed, int64_t activation,
                                                      double dropout_p, bool need_bias) {
  const ActivationGradient g = activation_gradient(
      grad_output, saved, with_seed(dropout_of(seed, dropout_p, grad_output), seed), activation, need_bias);
  cpu::linear_activation_backward(g.args, torch_thread_pool());
  return {g.grad_pre, g.grad_bias};
}

// A matrix one of whose strides is 1.
Tensor as_runs(const Tensor& t) {
  const bool runs = (t.stride(0) == 1 && t.stride(1) >= 0) || (t.stride(1) == 1 && t.stride(0) >= 0);
  return runs ? t : torch::stable::contiguous(t);
}

Tensor linear_product(Tensor left, Tensor right, std::optional<Tensor> bias) {
  check(left.dim() == 2 && right.dim() == 2 && left.size(1) == right.size(0),
        "left and right must have shapes [M, K] and [K, N], got ", shape_text(left), " and ",
        shape_text(right));
  check(dtype_of(left) == DType::kFloat32, "only float32 has a kernel");
  check_alike(right, left, "right");
  const int64_t M = left.size(0), N = right.size(1), K = left.size(1);
  const std::optional<Tensor> dense_bias = contiguous_bias(bias, N, left);
  const Tensor a = as_runs(left), b = as_runs(right);
  Tensor output = empty_contiguous({M, N}, left.scalar_type(), left);
  check(K > 0 || output.numel() == 0, "K must not be 0");
  LinearProduct args{M, N, K};
  args.left = static_cast<const float*>(a.data_ptr()), args.right = static_cast<const float*>(b.data_ptr());
  args.bias = dense_bias ? static_cast<const float*>(dense_bias->data_ptr()) : nullptr;
  args.output = static_cast<float*>(output.data_ptr());
  args.left_row = a.stride(0), args.left_depth = a.stride(1);
  args.right_depth = b.stride(0), args.right_column = b.stride(1);
  if (M > 0 && N > 0) cpu::linear_product(args, torch_thread_pool());
  return output;
}

}  // namespace
}  // namespace fastdl

STABLE_TORCH_LIBRARY_IMPL(fastdl, CPU, m) {
  m.impl("linear", TORCH_BOX(&fastdl::linear));
  m.impl("linear_product", TORCH_BOX(&fastdl::linear_product));
  m.impl("linear_activation", TORCH_BOX(&fastdl::linear_activation));
  m.impl("linear_activation_inplace", TORCH_BOX(&fastdl::linear_activation_inplace));
  m.impl("linear_activation_backward", TORCH_BOX(&fastdl::linear_activation_backward));
}
