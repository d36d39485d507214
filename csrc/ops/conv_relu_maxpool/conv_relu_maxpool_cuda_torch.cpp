// The CUDA operators of conv_relu_maxpool: tensors in, checked; outputs allocated; kernels enqueued on the
// current stream; nothing computed.
#include "common/cuda_torch_glue.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_args.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_cuda.h"

namespace fastdl {
namespace {

// Codes shared with fastdl/ops/conv_relu_maxpool/backends.py.
constexpr int64_t kImplicitGemm = 3, kImplicitGemmTf32 = 4;

std::tuple<Tensor, Tensor> forward(Tensor x, Tensor weight, std::optional<Tensor> bias, IntList geometry,
                                   int64_t algorithm, bool save_record) {
  check(algorithm == kImplicitGemm || algorithm == kImplicitGemmTf32, "no CUDA forward for algorithm ",
        algorithm);
  ConvReluMaxpoolForward args;
  unpack(geometry, x, weight, args.conv, args.pool);
  const OnDevice device(x);
  const ConvInputs inputs = conv_inputs(x, weight, bias, args.conv);
  const PooledOutput result = pooled_output(inputs.x, args.conv.N, args.conv.C_out, args.pool, save_record);
  fill(args, inputs, result);
  const char* refusal = cuda::implicit_gemm_refusal(args);
  check(!refusal, "the implicit GEMM cannot serve this: ", refusal ? refusal : "");
  const bool tf32 = args.dtype == DType::kFloat32 && algorithm == kImplicitGemmTf32;
  const bool needs_sm80 = tf32 || args.dtype == DType::kBFloat16;
  check(!needs_sm80 || device.major() >= 8, "bfloat16 and TF32 products need compute capability 8.0");
  const Tensor packed = workspace(cuda::implicit_gemm_workspace(args), x);
  check_launch(cuda::implicit_gemm_forward(args, tf32 ? cuda::Precision::kTf32 : cuda::Precision::kExact,
                                           packed.data_ptr(), device.stream()),
               "conv_relu_maxpool");
  return {result.output, result.record};
}

std::tuple<Tensor, Tensor> bias_relu_maxpool(Tensor conv, std::optional<Tensor> bias, IntList pool,
                                             bool save_record) {
  BiasReluMaxpoolForward args;
  const OnDevice device(conv);
  const ConvOutput input = conv_output(conv, bias);
  args.pool = unpack_pool(pool, conv.size(2), conv.size(3));
  const PooledOutput result = pooled_output(input.conv, conv.size(0), conv.size(1), args.pool, save_record);
  fill(args, input, result);
  check_launch(cuda::bias_relu_maxpool_forward(args, device.stream()), "bias_relu_maxpool");
  return {result.output, result.record};
}

std::tuple<Tensor, Tensor> bias_relu_maxpool_backward(Tensor grad_output, Tensor saved, int64_t CH,
                                                      int64_t CW, IntList pool) {
  BiasReluMaxpoolBackward args;
  args.pool = unpack_pool(pool, CH, CW);
  check(grad_output.dim() == 4, "grad_output must have 4 dimensions, got ", shape_text(grad_output));
  const OnDevice device(grad_output);
  const PooledGradient gradient =
      pooled_gradient(grad_output, saved, grad_output.size(0), grad_output.size(1), args.pool);
  const ExpandedGradient result = expanded_gradient(gradient, CH, CW);
  fill(args, gradient, CH, CW, result);
  const Tensor partial = workspace(cuda::bias_relu_maxpool_backward_workspace(args), grad_output);
  check_launch(cuda::bias_relu_maxpool_backward(args, partial.data_ptr(), device.stream()),
               "bias_relu_maxpool_backward");
  return {result.grad_conv, result.grad_bias};
}

}  // namespace
}  // namespace fastdl

STABLE_TORCH_LIBRARY_IMPL(fastdl, CUDA, m) {
  m.impl("conv_relu_maxpool", TORCH_BOX(&fastdl::forward));
  m.impl("bias_relu_maxpool", TORCH_BOX(&fastdl::bias_relu_maxpool));
  m.impl("bias_relu_maxpool_backward", TORCH_BOX(&fastdl::bias_relu_maxpool_backward));
}
