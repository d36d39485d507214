// Tensors -> the kernels' argument structs, for the CPU and the CUDA operators alike: every check memory
// safety depends on. Included by *_torch.cpp alone.
#pragma once
#include <optional>

#include "common/philox.h"
#include "common/torch_glue.h"
#include "ops/linear/linear.h"

namespace fastdl {

inline Activation activation_of(int64_t code) {
  check(code >= 0 && code < kActivations, "activation must be from 0 to ", kActivations - 1, ", got ", code);
  return static_cast<Activation>(code);
}

// Everything but the seed, which lies on the device.
inline Dropout dropout_of(const std::optional<Tensor>& seed, double p, const Tensor& like) {
  check(p >= 0 && p < 1, "dropout_p must be at least 0 and below 1, got ", p);
  check(p == 0 || seed.has_value(), "dropout needs a seed");
  if (p == 0) return {false, 0, 1, 1, 0};
  check(seed->numel() == 1 && seed->scalar_type() == torch::headeronly::ScalarType::Long &&
            seed->device() == like.device(),
        "seed must be one int64 on the device of the other inputs");
  return {true, dropout_threshold(p), 1 / (1 - p), 1 - p, 0};
}

inline Tensor as_contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

inline void check_alike(const Tensor& t, const Tensor& other, const char* what) {
  check(t.scalar_type() == other.scalar_type() && t.device() == other.device(), what,
        " must have the dtype and device of the other inputs");
}

inline void check_same_shape(const Tensor& t, const Tensor& other, const char* what) {
  bool same = t.dim() == other.dim();
  for (int64_t d = 0; same && d < t.dim(); ++d) same = t.size(d) == other.size(d);
  check(same, what, " must have shape ", shape_text(other), ", got ", shape_text(t));
}

inline bool by_output(Activation a) {
  return a == Activation::kRelu || a == Activation::kTanh || a == Activation::kSigmoid;
}

inline Tensor empty_shaped_like(const Tensor& t) {
  IntList sizes(static_cast<size_t>(t.dim()));
  for (int64_t d = 0; d < t.dim(); ++d) sizes[static_cast<size_t>(d)] = t.size(d);
  return empty_contiguous(sizes, t.scalar_type(), t);
}

// One call of the pass whose result takes the place of its input, dense.
struct ActivationInPlace {
  Tensor values, dense;
  bool copied;
  LinearActivation args;

  void finish() const {
    Tensor result = values;
    if (copied) torch::stable::copy_(result, dense);
  }
};

inline ActivationInPlace activation_in_place(const Tensor& values, Dropout dropout, int64_t activation) {
  const bool copied = !values.is_contiguous();
  const Tensor dense = as_contiguous(values);
  void* data = dense.data_ptr();
  return {values,
          dense,
          copied,
          {dense.numel(), dtype_of(values), activation_of(activation), dropout, data, data}};
}

// One call of the backward pass: its tensors, dense, kept alive, and what a kernel is given of them.
struct ActivationGradient {
  Tensor grad_output, saved, grad_pre, grad_bias;
  LinearActivationBackward args;
};

inline ActivationGradient activation_gradient(const Tensor& grad_output, const Tensor& saved, Dropout dropout,
                                              int64_t activation, bool need_bias) {
  const Activation a = activation_of(activation);
  check(grad_output.dim() >= 1, "grad_output must have shape [..., out_features], got []");
  if (a != Activation::kNone) {
    check_alike(saved, grad_output, "saved");
    check_same_shape(saved, grad_output, "saved");
  }
  const int64_t N = grad_output.size(grad_output.dim() - 1), M = N == 0 ? 0 : grad_output.numel() / N;
  const Tensor dense_grad = as_contiguous(grad_output), dense_saved = as_contiguous(saved);
  ActivationGradient g{dense_grad,
                       dense_saved,
                       empty_shaped_like(dense_grad),
                       empty_contiguous({need_bias ? N : 0}, grad_output.scalar_type(), grad_output),
                       {M, N, dtype_of(grad_output), a, dropout}};
  g.args.grad_output = g.grad_output.data_ptr();
  g.args.saved = g.saved.data_ptr();
  g.args.grad_pre = g.grad_pre.data_ptr();
  g.args.grad_bias = need_bias ? g.grad_bias.data_ptr() : nullptr;
  return g;
}

}  // namespace fastdl
