// The CUDA operators of linear, the passes around torch's product: tensors in, checked; outputs allocated;
// kernels enqueued on the current stream; nothing computed. The seed stays on the device.
#include "common/cuda_torch_glue.h"
#include "ops/linear/linear_args.h"
#include "ops/linear/linear_cuda.h"

namespace fastdl {
namespace {

const int64_t* seed_pointer(const std::optional<Tensor>& seed, double p) {
  return p > 0 ? static_cast<const int64_t*>(seed->data_ptr()) : nullptr;
}

Tensor linear_activation(Tensor pre, std::optional<Tensor> seed, int64_t activation, double dropout_p) {
  const OnDevice device(pre);
  const Tensor dense = as_contiguous(pre);
  Tensor output = empty_shaped_like(dense);
  LinearActivation args{dense.numel(), dtype_of(pre), activation_of(activation),
                        dropout_of(seed, dropout_p, pre)};
  args.pre = dense.data_ptr();
  args.output = output.data_ptr();
  check_launch(cuda::linear_activation_forward(args, seed_pointer(seed, dropout_p), device.stream()),
               "linear_activation");
  return output;
}

void linear_activation_inplace(Tensor values, std::optional<Tensor> seed, int64_t activation,
                               double dropout_p) {
  const OnDevice device(values);
  const ActivationInPlace p = activation_in_place(values, dropout_of(seed, dropout_p, values), activation);
  check_launch(cuda::linear_activation_forward(p.args, seed_pointer(seed, dropout_p), device.stream()),
               "linear_activation_inplace");
  p.finish();
}

std::tuple<Tensor, Tensor> linear_activation_backward(Tensor grad_output, Tensor saved,
                                                      std::optional<Tensor> seed, int64_t activation,
                                                      double dropout_p, bool need_bias) {
  const OnDevice device(grad_output);
  const ActivationGradient g = activation_gradient(
      grad_output, saved, dropout_of(seed, dropout_p, grad_output), activation, need_bias);
  const Tensor partial = workspace(cuda::linear_activation_backward_workspace(g.args), grad_output);
  check_launch(cuda::linear_activation_backward(g.args, seed_pointer(seed, dropout_p), partial.data_ptr(),
                                                device.stream()),
               "linear_activation_backward");
  return {g.grad_pre, g.grad_bias};
}

}  // namespace
}  // namespace fastdl

STABLE_TORCH_LIBRARY_IMPL(fastdl, CUDA, m) {
  m.impl("linear_activation", TORCH_BOX(&fastdl::linear_activation));
  m.impl("linear_activation_inplace", TORCH_BOX(&fastdl::linear_activation_inplace));
  m.impl("linear_activation_backward", TORCH_BOX(&fastdl::linear_activation_backward));
}
