// The CUDA operators of rnn: tensors in, checked; outputs allocated; kernels enqueued on the current stream;
// nothing computed.
#include "common/cuda_torch_glue.h"
#include "ops/rnn/rnn_args.h"
#include "ops/rnn/rnn_cuda.h"

namespace fastdl {
namespace {

// A grid needs its weights packed, its counters zeroed and a launch that is cooperative before the first
// step: for fewer steps a launch a step costs less.
constexpr int64_t kFewestGridSteps = 8;

// The kernels of a call.
template <class P>
struct Launcher {
  int64_t (*workspace)(const P&);
  cudaError_t (*launch)(const P&, void*, cudaStream_t);

  void operator()(const P& p, const Tensor& like, cudaStream_t stream, const char* what) const {
    const Tensor memory = fastdl::workspace(workspace(p), like);
    check_launch(launch(p, memory.data_ptr(), stream), what);
  }
};

Launcher<RnnForward> launcher(const RnnForward& p) {
  if (!cuda::rnn_persistent_forward_refusal(p))
    return {cuda::rnn_persistent_forward_workspace, cuda::rnn_persistent_forward};
  if (p.q.rows.T >= kFewestGridSteps && !cuda::rnn_grid_forward_refusal(p))
    return {cuda::rnn_grid_forward_workspace, cuda::rnn_grid_forward};
  return {cuda::rnn_steps_forward_workspace, cuda::rnn_steps_forward};
}
Launcher<RnnBackward> launcher(const RnnBackward& p) {
  if (!cuda::rnn_persistent_backward_refusal(p))
    return {cuda::rnn_persistent_backward_workspace, cuda::rnn_persistent_backward};
  if (p.q.rows.T >= kFewestGridSteps && !cuda::rnn_grid_backward_refusal(p))
    return {cuda::rnn_grid_backward_workspace, cuda::rnn_grid_backward};
  return {cuda::rnn_steps_backward_workspace, cuda::rnn_steps_backward};
}

SixTensors rnn_sequence(Tensor x, MaybeTensor h_0, MaybeTensor c_0, std::vector<Tensor> weights,
                        MaybeTensor batch_sizes, MaybeTensor lengths, MaybeTensor reset,
                        MaybeTensor recurrent_mask, MaybeTensor zoneout_h, MaybeTensor zoneout_c,
                        IntList structure, std::vector<double> zoneout, bool save) {
  const OnDevice device(x);
  RnnCall<RnnForward> call;
  fill(call, x, h_0, c_0, weights,
       {batch_sizes, lengths, reset, recurrent_mask, zoneout_h, zoneout_c, structure, zoneout}, save);
  const RnnForward& p = call.args;
  check(p.q.s.projected, "the CUDA kernels need a projected x");
  check(p.q.dtype != DType::kBFloat16 || device.major() >= 8,
        "bfloat16 products need compute capability 8.0");
  launcher(p)(p, x, device.stream(), "rnn_sequence");
  return call.results();
}

SixTensors rnn_sequence_backward(MaybeTensor grad_output, MaybeTensor grad_h_n, MaybeTensor grad_c_n,
                                 MaybeTensor h_0, MaybeTensor c_0, std::vector<Tensor> weights, Tensor output,
                                 Tensor gates, Tensor cells, Tensor rstd, MaybeTensor batch_sizes,
                                 MaybeTensor lengths, MaybeTensor reset, MaybeTensor recurrent_mask,
                                 MaybeTensor zoneout_h, MaybeTensor zoneout_c, IntList structure,
                                 std::vector<double> zoneout) {
  const OnDevice device(output);
  RnnCall<RnnBackward> call;
  fill(call, grad_output, grad_h_n, grad_c_n, h_0, c_0, weights, output, gates, cells, rstd,
       {batch_sizes, lengths, reset, recurrent_mask, zoneout_h, zoneout_c, structure, zoneout});
  const RnnBackward& p = call.args;
  check(p.q.dtype != DType::kBFloat16 || device.major() >= 8,
        "bfloat16 products need compute capability 8.0");
  launcher(p)(p, output, device.stream(), "rnn_sequence_backward");
  return call.results();
}

}  // namespace
}  // namespace fastdl

STABLE_TORCH_LIBRARY_IMPL(fastdl, CUDA, m) {
  m.impl("rnn_sequence", TORCH_BOX(&fastdl::rnn_sequence));
  m.impl("rnn_sequence_backward", TORCH_BOX(&fastdl::rnn_sequence_backward));
}
