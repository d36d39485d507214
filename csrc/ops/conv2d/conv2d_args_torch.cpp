#include "ops/conv2d/conv2d_args.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_args.h"

namespace fastdl {

std::optional<Tensor> channel_values(const char* name, const std::optional<Tensor>& t, const Tensor& x,
                                     int64_t C_out) {
  if (!t) return t;
  check(t->dim() == 1 && t->size(0) == C_out, name, " must have shape [C_out] = [", C_out, "], got ",
        shape_text(*t));
  check(t->scalar_type() == x.scalar_type(), name, " must have the dtype of x");
  check(t->device() == x.device(), name, " must be on the device of x");
  return t->is_contiguous() ? t : torch::stable::contiguous(*t);
}

std::optional<Tensor> image_like(const std::optional<Tensor>& residual, const Tensor& output) {
  if (!residual) return residual;
  bool same = residual->dim() == 4;
  for (int i = 0; same && i < 4; ++i) same = residual->size(i) == output.size(i);
  check(same, "residual must have shape ", shape_text(output), ", got ", shape_text(*residual));
  check(residual->scalar_type() == output.scalar_type(), "residual must have the dtype of x");
  check(residual->device() == output.device(), "residual must be on the device of x");
  return in_memory_format(*residual, is_channels_last(output));
}

Activation conv2d_activation(int64_t code) {
  constexpr int64_t most = static_cast<int64_t>(Activation::kHardswish);
  check(code >= 0 && code <= most, "activation must be from 0 to ", most, ", got ", code);
  return static_cast<Activation>(code);
}

EpilogueCall epilogue_call(const Tensor& y, const std::optional<Tensor>& bias,
                           const std::optional<Tensor>& scale, const std::optional<Tensor>& residual,
                           int64_t activation) {
  check(y.dim() == 4, "y must have shape [N, C_out, CH, CW], got ", shape_text(y));
  const bool channels_last = is_channels_last(y);
  check(channels_last || y.is_contiguous(), "y must be contiguous or channels_last");
  EpilogueCall call{channel_values("bias", bias, y, y.size(1)), channel_values("scale", scale, y, y.size(1)),
                    image_like(residual, y)};
  call.args = {y.size(0), y.size(1), y.size(2) * y.size(3), dtype_of(y), channels_last, y.data_ptr()};
  call.args.bias = call.bias ? call.bias->data_ptr() : nullptr;
  call.args.scale = call.scale ? call.scale->data_ptr() : nullptr;
  call.args.residual = call.residual ? call.residual->data_ptr() : nullptr;
  call.args.activation = conv2d_activation(activation);
  return call;
}

}  // namespace fastdl
