// The CPU operators of conv2d: tensors in, checked; outputs allocated; kernels called; nothing computed.
#include <vector>

#include "common/cpu/fingerprint.h"
#include "ops/conv2d/conv2d_args.h"
#include "ops/conv2d/conv2d_cpu.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_args.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_cpu.h"

namespace fastdl {
namespace {

// Codes shared with fastdl/ops/conv_relu_maxpool/backends.py.
constexpr int64_t kConv2dWinograd = 1, kConv2dImplicitGemm = 3;

// What the kernels take for granted.
void check_conv2d(int64_t algorithm, const ConvGeometry& g, const PoolGeometry& pool, const Tensor& x) {
  check(!pool.present, "conv2d has no pool");
  if (algorithm == kConv2dImplicitGemm) {
    check(dtype_of(x) == DType::kFloat32 && g.groups == 1, "the implicit GEMM is for float32 without groups");
    check(g.KH * g.KW <= 256, "the implicit GEMM takes at most 256 taps");
    return;
  }
  check(algorithm == kConv2dWinograd, "no CPU kernel for algorithm ", algorithm);
  check(dtype_of(x) != DType::kFloat64, "no CPU kernel for float64");
  check(is_winograd(g), "Winograd needs a 3x3 kernel with stride 1, dilation 1 and groups 1");
}

// What follows the convolution, per channel: pointers that outlive the call, or null.
struct ChannelValues {
  const void *scale, *bias;
};

Tensor convolve(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                const ChannelValues* values, const std::optional<Tensor>& scale,
                const std::optional<Tensor>& residual, bool relu, const IntList& geometry, int64_t algorithm,
                bool training) {
  Conv2dForward args;
  PoolGeometry pool;
  unpack(geometry, x, weight, args.conv, pool);
  check_conv2d(algorithm, args.conv, pool, x);
  const bool winograd = algorithm == kConv2dWinograd;
  const Tensor image = winograd ? x : in_memory_format(x, false);
  const ConvInputs inputs = conv_inputs(image, weight, bias, args.conv, winograd);
  const Tensor output = pooled_output(inputs.x, args.conv.N, args.conv.C_out, pool, false).output;
  const std::optional<Tensor> scales = channel_values("scale", scale, x, args.conv.C_out);
  const std::optional<Tensor> added = image_like(residual, output);
  args.dtype = dtype_of(x);
  args.x = inputs.x.data_ptr();
  copy_strides(inputs.x, args.x_strides);
  args.weight = inputs.weight.data_ptr();
  args.weight_channels_last = !inputs.weight.is_contiguous();
  args.bias = values != nullptr ? values->bias : inputs.bias ? inputs.bias->data_ptr() : nullptr;
  args.scale = values != nullptr ? values->scale : scales ? scales->data_ptr() : nullptr;
  args.residual = added ? added->data_ptr() : nullptr;
  args.relu = relu;
  args.output = output.data_ptr();
  copy_strides(output, args.output_strides);
  args.training = training;
  if (args.conv.N > 0)
    (winograd ? cpu::winograd_conv2d : cpu::implicit_gemm_conv2d)(args, torch_thread_pool());
  return output;
}

Tensor conv2d(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> scale,
              std::optional<Tensor> residual, bool relu, IntList geometry, int64_t algorithm, bool training) {
  return convolve(x, weight, bias, nullptr, scale, residual, relu, geometry, algorithm, training);
}

Tensor conv2d_batch_norm(Tensor x, Tensor weight, std::optional<Tensor> bias, Tensor running_mean,
                         Tensor running_var, std::optional<Tensor> norm_weight,
                         std::optional<Tensor> norm_bias, double eps, std::optional<Tensor> residual,
                         bool relu, IntList geometry, int64_t algorithm) {
  check(dtype_of(x) == DType::kFloat32, "conv2d_batch_norm is for float32");
  check(weight.dim() == 4, "weight must have shape [C_out, C, KH, KW], got ", shape_text(weight));
  const int64_t C_out = weight.size(0);
  const std::optional<Tensor> tensors[] = {channel_values("running_mean", running_mean, x, C_out),
                                           channel_values("running_var", running_var, x, C_out),
                                           channel_values("norm_weight", norm_weight, x, C_out),
                                           channel_values("norm_bias", norm_bias, x, C_out),
                                           channel_values("bias", bias, x, C_out)};
  const auto data = [&](int i) {
    return tensors[i] ? static_cast<const float*>(tensors[i]->data_ptr()) : nullptr;
  };
  std::vector<float> scale(C_out), shift(C_out);
  cpu::batch_norm_scale(
      {C_out, eps, data(0), data(1), data(2), data(3), data(4), scale.data(), shift.data()});
  const ChannelValues values = {scale.data(), shift.data()};
  return convolve(x, weight, std::nullopt, &values, std::nullopt, residual, relu, geometry, algorithm, false);
}

std::tuple<Tensor, Tensor, Tensor> conv2d_backward(Tensor grad_output, Tensor x, Tensor weight,
                                                   IntList geometry, int64_t algorithm, bool need_input,
                                                   bool need_weight, bool need_bias) {
  ConvReluMaxpoolBackward args;
  unpack(geometry, x, weight, args.conv, args.pool);
  check(algorithm == kConv2dWinograd, "no CPU backward for algorithm ", algorithm);
  check_conv2d(algorithm, args.conv, args.pool, x);
  const ConvInputs inputs = conv_inputs(x, weight, std::nullopt, args.conv, true);
  const PooledGradient gradient =
      pooled_gradient(grad_output, grad_output, args.conv.N, args.conv.C_out, args.pool);
  const ConvGradients result = conv_gradients(inputs, need_input, need_weight, need_bias);
  fill(args, inputs, gradient, result);
  args.output = nullptr;  // no ReLU to close
  cpu::winograd_backward(args, torch_thread_pool());
  return {result.grad_input, result.grad_weight, result.grad_bias};
}

void conv2d_epilogue(Tensor y, std::optional<Tensor> bias, std::optional<Tensor> scale,
                     std::optional<Tensor> residual, bool relu) {
  const EpilogueCall call = epilogue_call(y, bias, scale, residual, relu);
  cpu::conv2d_epilogue(call.args, torch_thread_pool());
}

int64_t weight_fingerprint(Tensor weight) {
  check(weight.is_contiguous() || (weight.dim() == 4 && is_channels_last(weight)),
        "weight must be contiguous or channels_last");
  const DType dtype = dtype_of(weight);
  const int64_t element = dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
  const size_t bytes = static_cast<size_t>(weight.numel() * element);
  return static_cast<int64_t>(cpu::fingerprint(weight.data_ptr(), bytes, torch_thread_pool()));
}

}  // namespace
}  // namespace fastdl

STABLE_TORCH_LIBRARY_IMPL(fastdl, CPU, m) {
  m.impl("conv2d", TORCH_BOX(&fastdl::conv2d));
  m.impl("conv2d_batch_norm", TORCH_BOX(&fastdl::conv2d_batch_norm));
  m.impl("conv2d_backward", TORCH_BOX(&fastdl::conv2d_backward));
  m.impl("conv2d_epilogue", TORCH_BOX(&fastdl::conv2d_epilogue));
  m.impl("weight_fingerprint", TORCH_BOX(&fastdl::weight_fingerprint));
}
