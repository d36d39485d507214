// Tensors -> the kernels' argument structs, for the CPU and the CUDA operators alike: every check memory
// safety depends on, every output allocation. Included by *_torch.cpp alone.
#pragma once
#include <optional>
#include <tuple>

#include "common/torch_glue.h"
#include "ops/diffusion/diffusion.h"

namespace fastdl {

using MaybeTensor = std::optional<Tensor>;

// The tensors of one step in one memory order, kept alive, and the arguments that point into them.
struct StepCall {
  DiffusionStep args;
  Tensor sample, table;
  MaybeTensor model_output, history, noise, seed, rows;
  Tensor prev, x_0, value;
};
StepCall step_call(const Tensor& sample, const MaybeTensor& model_output, const MaybeTensor& history,
                   const MaybeTensor& noise, const MaybeTensor& seed, const MaybeTensor& rows, int64_t row,
                   const Tensor& table, int64_t flags, double guidance, double rescale, double limit,
                   double quantile);

struct StepBackwardCall {
  DiffusionStepBackward args;
  Tensor table;
  MaybeTensor grad_prev, grad_x0, sample, model_output, rows;
  Tensor grad_sample, grad_model, grad_history, grad_noise;
};
StepBackwardCall step_backward_call(const MaybeTensor& grad_prev, const MaybeTensor& grad_x0,
                                    const MaybeTensor& sample, const MaybeTensor& model_output,
                                    const MaybeTensor& rows, int64_t row, const Tensor& table, int64_t flags,
                                    double guidance, double limit);

struct NoiseCall {
  NormalNoise args;
  Tensor seed, output;
};
NoiseCall noise_call(const Tensor& like, const Tensor& seed);

}  // namespace fastdl
