// The CUDA operator of conv2d: tensors in, checked; the kernel enqueued on the current stream; nothing
// computed.
#include "common/cuda_torch_glue.h"
#include "ops/conv2d/conv2d_args.h"
#include "ops/conv2d/conv2d_cuda.h"

namespace fastdl {
namespace {

void conv2d_epilogue(Tensor y, std::optional<Tensor> bias, std::optional<Tensor> scale,
                     std::optional<Tensor> residual, int64_t activation) {
  const OnDevice device(y);
  const EpilogueCall call = epilogue_call(y, bias, scale, residual, activation);
  check_launch(cuda::conv2d_epilogue(call.args, device.stream()), "conv2d_epilogue");
}

}  // namespace
}  // namespace fastdl

STABLE_TORCH_LIBRARY_IMPL(fastdl, CUDA, m) { m.impl("conv2d_epilogue", TORCH_BOX(&fastdl::conv2d_epilogue)); }
