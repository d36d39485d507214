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
constexpr int64_t kConv2dWinograd = 1, kConv2dImplicitGemm = 3, kConv2dDepthwise = 5;

// What the kernels take for granted.
void check_conv2d(int64_t algorithm, const ConvGeometry& g, const PoolGeometry& pool, const Tensor& x) {
  check(!pool.present, "conv2d has no pool");
  if (algorithm == kConv2dImplicitGemm) {
    check(dtype_of(x) == DType::kFloat32 && g.groups == 1, "the implicit GEMM is for float32 without groups");
    check(g.KH * g.KW <= 256, "the implicit GEMM takes at most 256 taps");
    return;
  }
  check(algorithm == kConv2dWinograd || algorithm == kConv2dDepthwise, "no CPU kernel for algorithm ",
        algorithm);
  check(dtype_of(x) != DType::kFloat64, "no CPU kernel for float64");
  if (algorithm == kConv2dDepthwise) {
    check(g.groups == g.C, "the depthwise kernel needs a group for every input channel");
    return;
  }
  check(is_winograd(g), "Winograd needs a 3x3 kernel with stride 1, dilation 1 and groups 1");
}

// A call whose geometry and dtype are checked; bias and scale are the operator's to fill in.
struct Convolution {
  Conv2dForward args;
  PoolGeometry pool;
  int64_t algorithm;
};

Convolution convolution(const Tensor& x, const Tensor& weight, const IntList& geometry, int64_t algorithm) {
  Convolution c;
  unpack(geometry, x, weight, c.args.conv, c.pool);
  check_conv2d(algorithm, c.args.conv, c.pool, x);
  c.algorithm = algorithm;
  return c;
}

auto kernel_of(int64_t algorithm) {
  if (algorithm == kConv2dWinograd) return cpu::winograd_conv2d;
  return algorithm == kConv2dDepthwise ? cpu::depthwise_conv2d : cpu::implicit_gemm_conv2d;
}

Tensor output_of(Convolution c, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& residual,
                 int64_t activation, bool training) {
  Conv2dForward& args = c.args;
  const bool winograd = c.algorithm == kConv2dWinograd;
  const Tensor image = winograd ? x : in_memory_format(x, false);
  const ConvInputs inputs = conv_inputs(image, weight, std::nullopt, args.conv, winograd);
  const Tensor output = pooled_output(inputs.x, args.conv.N, args.conv.C_out, c.pool, false).output;
  const std::optional<Tensor> added = image_like(residual, output);
  args.dtype = dtype_of(x);
  args.x = inputs.x.data_ptr();
  copy_strides(inputs.x, args.x_strides);
  args.weight = inputs.weight.data_ptr();
  args.weight_channels_last = !inputs.weight.is_contiguous();
  args.residual = added ? added->data_ptr() : nullptr;
  args.activation = conv2d_activation(activation);
  args.output = output.data_ptr();
  copy_strides(output, args.output_strides);
  args.training = training;
  if (args.conv.N > 0) kernel_of(c.algorithm)(args, torch_thread_pool());
  return output;
}

template <class T = void>
const T* data_of(const std::optional<Tensor>& t) {
  return t ? static_cast<const T*>(t->data_ptr()) : nullptr;
}

Tensor conv2d(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> scale,
              std::optional<Tensor> residual, int64_t activation, IntList geometry, int64_t algorithm,
              bool training) {
  Convolution c = convolution(x, weight, geometry, algorithm);
  const std::optional<Tensor> biases = channel_values("bias", bias, x, c.args.conv.C_out),
                              scales = channel_values("scale", scale, x, c.args.conv.C_out);
  c.args.bias = data_of(biases), c.args.scale = data_of(scales);
  return output_of(c, x, weight, residual, activation, training);
}

Tensor conv2d_batch_norm(Tensor x, Tensor weight, std::optional<Tensor> bias, Tensor running_mean,
                         Tensor running_var, std::optional<Tensor> norm_weight,
                         std::optional<Tensor> norm_bias, double eps, std::optional<Tensor> residual,
                         int64_t activation, IntList geometry, int64_t algorithm) {
  check(dtype_of(x) == DType::kFloat32, "conv2d_batch_norm is for float32");
  Convolution c = convolution(x, weight, geometry, algorithm);
  const int64_t C_out = c.args.conv.C_out;
  const std::optional<Tensor> mean = channel_values("running_mean", running_mean, x, C_out),
                              variance = channel_values("running_var", running_var, x, C_out),
                              weights = channel_values("norm_weight", norm_weight, x, C_out),
                              biases = channel_values("norm_bias", norm_bias, x, C_out),
                              conv_biases = channel_values("bias", bias, x, C_out);
  std::vector<float> scale(C_out), shift(C_out);
  cpu::batch_norm_scale({C_out, eps, data_of<float>(mean), data_of<float>(variance), data_of<float>(weights),
                         data_of<float>(biases), data_of<float>(conv_biases), scale.data(), shift.data()});
  c.args.bias = shift.data(), c.args.scale = scale.data();
  return output_of(c, x, weight, residual, activation, false);
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
                     std::optional<Tensor> residual, int64_t activation) {
  const EpilogueCall call = epilogue_call(y, bias, scale, residual, activation);
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
