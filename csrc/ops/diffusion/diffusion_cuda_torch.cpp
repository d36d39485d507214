// The CUDA operators of diffusion: tensors in, checked; outputs allocated; kernels enqueued on the current
// stream; nothing computed.
#include "common/cuda_torch_glue.h"
#include "ops/diffusion/diffusion_args.h"
#include "ops/diffusion/diffusion_cuda.h"

namespace fastdl {
namespace {

std::tuple<Tensor, Tensor, Tensor> diffusion_step(Tensor sample, MaybeTensor model_output,
                                                  MaybeTensor history, MaybeTensor noise, MaybeTensor seed,
                                                  MaybeTensor rows, int64_t row, Tensor table, int64_t flags,
                                                  double guidance, double rescale, double limit,
                                                  double quantile) {
  const OnDevice device(sample);
  const StepCall call = step_call(sample, model_output, history, noise, seed, rows, row, table, flags,
                                  guidance, rescale, limit, quantile);
  check_launch(cuda::diffusion_step(call.args, device.stream()), "diffusion_step");
  return {call.prev, call.x_0, call.value};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> diffusion_step_backward(MaybeTensor grad_prev, MaybeTensor grad_x0,
                                                                   MaybeTensor sample,
                                                                   MaybeTensor model_output, MaybeTensor rows,
                                                                   int64_t row, Tensor table, int64_t flags,
                                                                   double guidance, double limit) {
  const OnDevice device(table);
  const StepBackwardCall call =
      step_backward_call(grad_prev, grad_x0, sample, model_output, rows, row, table, flags, guidance, limit);
  check_launch(cuda::diffusion_step_backward(call.args, device.stream()), "diffusion_step_backward");
  return {call.grad_sample, call.grad_model, call.grad_history, call.grad_noise};
}

Tensor normal_noise(Tensor like, Tensor seed) {
  const OnDevice device(like);
  const NoiseCall call = noise_call(like, seed);
  check_launch(cuda::normal_noise(call.args, device.stream()), "normal_noise");
  return call.output;
}

}  // namespace
}  // namespace fastdl

STABLE_TORCH_LIBRARY_IMPL(fastdl, CUDA, m) {
  m.impl("diffusion_step", TORCH_BOX(&fastdl::diffusion_step));
  m.impl("diffusion_step_backward", TORCH_BOX(&fastdl::diffusion_step_backward));
  m.impl("normal_noise", TORCH_BOX(&fastdl::normal_noise));
}
