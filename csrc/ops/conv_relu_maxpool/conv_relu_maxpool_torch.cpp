// The CPU operators of conv_relu_maxpool: tensors in, checked; outputs allocated; kernels called; nothing
// computed.
#include "common/torch_glue.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_args.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_cpu.h"

namespace fastdl {
namespace {

// Codes shared with fastdl/ops/conv_relu_maxpool/backends.py.
constexpr int64_t kWinograd = 1, kDirect = 2, kImplicitGemm = 3;

// What the kernels take for granted.
void check_algorithm(int64_t algorithm, const ConvGeometry& g, const PoolGeometry& p, const Tensor& x) {
  check(algorithm == kWinograd || algorithm == kDirect || algorithm == kImplicitGemm,
        "no CPU kernel for algorithm ", algorithm);
  check(dtype_of(x) != DType::kFloat64, "no CPU kernel for float64");
  check(g.groups == 1, "the CPU kernels need groups 1, got ", g.groups);
  if (algorithm == kImplicitGemm)
    check(
        dtype_of(x) == DType::kFloat32 || (dtype_of(x) == DType::kBFloat16 && cpu::has_implicit_gemm_tiles()),
        "the implicit GEMM of CPUs is for float32, and with AMX for bfloat16");
  if (algorithm != kWinograd) return;
  check(is_winograd(g), "Winograd needs a 3x3 kernel with stride 1 and dilation 1");
  for (int i = 0; i < 2 && p.present; ++i)
    check(p.size[i] == 2 && p.stride[i] == 2 && p.padding[i] == 0 && p.dilation[i] == 1,
          "Winograd needs a 2x2 pool with stride 2, or none");
}

std::tuple<Tensor, Tensor> conv_relu_maxpool(Tensor x, Tensor weight, std::optional<Tensor> bias,
                                             IntList geometry, int64_t algorithm, bool save_record) {
  ConvReluMaxpoolForward args;
  unpack(geometry, x, weight, args.conv, args.pool);
  check_algorithm(algorithm, args.conv, args.pool, x);
  const ConvInputs inputs = conv_inputs(x, weight, bias, args.conv, algorithm == kWinograd);
  const PooledOutput result = pooled_output(inputs.x, args.conv.N, args.conv.C_out, args.pool, save_record);
  fill(args, inputs, result);
  args.training = save_record;
  if (args.conv.N > 0) {
    if (algorithm == kWinograd)
      cpu::winograd_forward(args, torch_thread_pool());
    else if (algorithm == kImplicitGemm && args.dtype == DType::kBFloat16)
      cpu::implicit_gemm_tiles_forward(args, torch_thread_pool());
    else if (algorithm == kImplicitGemm)
      cpu::implicit_gemm_forward(args, torch_thread_pool());
    else
      cpu::direct_forward(args, torch_thread_pool());
  }
  return {result.output, result.record};
}

std::tuple<Tensor, Tensor, Tensor> conv_relu_maxpool_backward(Tensor grad_output, Tensor x, Tensor weight,
                                                              Tensor saved, IntList geometry,
                                                              int64_t algorithm, bool need_input,
                                                              bool need_weight, bool need_bias) {
  ConvReluMaxpoolBackward args;
  unpack(geometry, x, weight, args.conv, args.pool);
  check_algorithm(algorithm, args.conv, args.pool, x);
  check(algorithm != kImplicitGemm, "the implicit GEMM of CPUs has no backward");
  const ConvInputs inputs = conv_inputs(x, weight, std::nullopt, args.conv, algorithm == kWinograd);
  const PooledGradient gradient =
      pooled_gradient(grad_output, saved, args.conv.N, args.conv.C_out, args.pool);
  const ConvGradients result = conv_gradients(inputs, need_input, need_weight, need_bias);
  fill(args, inputs, gradient, result);
  if (algorithm == kDirect) {
    check(!need_input, "the direct CPU backward has no grad_input");
    cpu::direct_backward(args, torch_thread_pool());
  } else {
    cpu::winograd_backward(args, torch_thread_pool());
  }
  return {result.grad_input, result.grad_weight, result.grad_bias};
}

std::tuple<Tensor, Tensor> bias_relu_maxpool(Tensor conv, std::optional<Tensor> bias, IntList pool,
                                             bool save_record) {
  BiasReluMaxpoolForward args;
  const ConvOutput input = conv_output(conv, bias);
  args.pool = unpack_pool(pool, conv.size(2), conv.size(3));
  const PooledOutput result = pooled_output(input.conv, conv.size(0), conv.size(1), args.pool, save_record);
  fill(args, input, result);
  if (conv.numel() > 0) cpu::bias_relu_maxpool_forward(args, torch_thread_pool());
  return {result.output, result.record};
}

std::tuple<Tensor, Tensor> bias_relu_maxpool_backward(Tensor grad_output, Tensor saved, int64_t CH,
                                                      int64_t CW, IntList pool) {
  BiasReluMaxpoolBackward args;
  args.pool = unpack_pool(pool, CH, CW);
  check(grad_output.dim() == 4, "grad_output must have 4 dimensions, got ", shape_text(grad_output));
  const PooledGradient gradient =
      pooled_gradient(grad_output, saved, grad_output.size(0), grad_output.size(1), args.pool);
  const ExpandedGradient result = expanded_gradient(gradient, CH, CW);
  fill(args, gradient, CH, CW, result);
  cpu::bias_relu_maxpool_backward(args, torch_thread_pool());
  return {result.grad_conv, result.grad_bias};
}

}  // namespace
}  // namespace fastdl

STABLE_TORCH_LIBRARY_IMPL(fastdl, CPU, m) {
  m.impl("conv_relu_maxpool", TORCH_BOX(&fastdl::conv_relu_maxpool));
  m.impl("conv_relu_maxpool_backward", TORCH_BOX(&fastdl::conv_relu_maxpool_backward));
  m.impl("bias_relu_maxpool", TORCH_BOX(&fastdl::bias_relu_maxpool));
  m.impl("bias_relu_maxpool_backward", TORCH_BOX(&fastdl::bias_relu_maxpool_backward));
}
