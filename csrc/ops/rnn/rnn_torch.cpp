// The CPU operators of rnn: tensors in, checked; outputs allocated; kernels called; nothing computed.
#include "ops/rnn/rnn_args.h"
#include "ops/rnn/rnn_cpu.h"

namespace fastdl {
namespace {

SixTensors rnn_sequence(Tensor x, MaybeTensor h_0, MaybeTensor c_0, std::vector<Tensor> weights,
                        MaybeTensor batch_sizes, MaybeTensor lengths, MaybeTensor reset,
                        MaybeTensor recurrent_mask, MaybeTensor zoneout_h, MaybeTensor zoneout_c,
                        IntList structure, std::vector<double> zoneout, bool save) {
  check(dtype_of(x) != DType::kFloat64, "no CPU kernel for float64");
  RnnCall<RnnForward> call;
  fill(call, x, h_0, c_0, weights,
       {batch_sizes, lengths, reset, recurrent_mask, zoneout_h, zoneout_c, structure, zoneout}, save);
  cpu::rnn_forward(call.args, torch_thread_pool());
  return call.results();
}

SixTensors rnn_sequence_backward(MaybeTensor grad_output, MaybeTensor grad_h_n, MaybeTensor grad_c_n,
                                 MaybeTensor h_0, MaybeTensor c_0, std::vector<Tensor> weights, Tensor output,
                                 Tensor gates, Tensor cells, Tensor rstd, MaybeTensor batch_sizes,
                                 MaybeTensor lengths, MaybeTensor reset, MaybeTensor recurrent_mask,
                                 MaybeTensor zoneout_h, MaybeTensor zoneout_c, IntList structure,
                                 std::vector<double> zoneout) {
  check(dtype_of(output) != DType::kFloat64, "no CPU kernel for float64");
  RnnCall<RnnBackward> call;
  fill(call, grad_output, grad_h_n, grad_c_n, h_0, c_0, weights, output, gates, cells, rstd,
       {batch_sizes, lengths, reset, recurrent_mask, zoneout_h, zoneout_c, structure, zoneout});
  cpu::rnn_backward(call.args, torch_thread_pool());
  return call.results();
}

std::tuple<Tensor, Tensor> rnn_step(Tensor x, MaybeTensor h, MaybeTensor c, std::vector<Tensor> weights,
                                    int64_t cell) {
  check(dtype_of(x) != DType::kFloat64, "no CPU kernel for float64");
  RnnCall<RnnForward> call;
  fill_step(call, x, h, c, weights, cell);
  cpu::rnn_forward(call.args, torch_thread_pool());
  return {call.outputs[0], call.outputs[1]};
}

}  // namespace
}  // namespace fastdl

STABLE_TORCH_LIBRARY_IMPL(fastdl, CPU, m) {
  m.impl("rnn_sequence", TORCH_BOX(&fastdl::rnn_sequence));
  m.impl("rnn_step", TORCH_BOX(&fastdl::rnn_step));
  m.impl("rnn_sequence_backward", TORCH_BOX(&fastdl::rnn_sequence_backward));
}
