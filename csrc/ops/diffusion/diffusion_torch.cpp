// The CPU operators of diffusion: tensors in, checked; outputs allocated; kernels called; nothing computed.
#include "ops/diffusion/diffusion_args.h"
#include "ops/diffusion/diffusion_cpu.h"

namespace fastdl {
namespace {

// On a CPU a row outside the table is an error; its text is known to fastdl/ops/diffusion/checks.py.
void check_inside(const TableRows& rows, int64_t samples) {
  if (!rows.row_of) return;
  for (int64_t i = 0; i < (rows.row_stride ? samples : 1); ++i)
    check(rows.row_of[i] >= 0 && rows.row_of[i] < rows.table_rows, "timestep ", rows.row_of[i],
          " is outside the table's [0, ", rows.table_rows - 1, "]");
}

std::tuple<Tensor, Tensor, Tensor> diffusion_step(Tensor sample, MaybeTensor model_output,
                                                  MaybeTensor history, MaybeTensor noise, MaybeTensor seed,
                                                  MaybeTensor rows, int64_t row, Tensor table, int64_t flags,
                                                  double guidance, double rescale, double limit,
                                                  double quantile) {
  const StepCall call = step_call(sample, model_output, history, noise, seed, rows, row, table, flags,
                                  guidance, rescale, limit, quantile);
  check_inside(call.args.rows, call.args.samples);
  cpu::diffusion_step(call.args, torch_thread_pool());
  return {call.prev, call.x_0, call.value};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> diffusion_step_backward(MaybeTensor grad_prev, MaybeTensor grad_x0,
                                                                   MaybeTensor sample,
                                                                   MaybeTensor model_output, MaybeTensor rows,
                                                                   int64_t row, Tensor table, int64_t flags,
                                                                   double guidance, double limit) {
  const StepBackwardCall call =
      step_backward_call(grad_prev, grad_x0, sample, model_output, rows, row, table, flags, guidance, limit);
  check_inside(call.args.rows, call.args.samples);
  cpu::diffusion_step_backward(call.args, torch_thread_pool());
  return {call.grad_sample, call.grad_model, call.grad_history, call.grad_noise};
}

Tensor normal_noise(Tensor like, Tensor seed) {
  const NoiseCall call = noise_call(like, seed);
  cpu::normal_noise(call.args, torch_thread_pool());
  return call.output;
}

}  // namespace
}  // namespace fastdl

STABLE_TORCH_LIBRARY_IMPL(fastdl, CPU, m) {
  m.impl("diffusion_step", TORCH_BOX(&fastdl::diffusion_step));
  m.impl("diffusion_step_backward", TORCH_BOX(&fastdl::diffusion_step_backward));
  m.impl("normal_noise", TORCH_BOX(&fastdl::normal_noise));
}
