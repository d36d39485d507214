// The CPU kernels of diffusion, each compiled for every instruction set and picked once per process.
#pragma once
#include "common/cpu/parallel.h"
#include "ops/diffusion/diffusion.h"

namespace fastdl::cpu {

// Every row index must lie in the table.
void diffusion_step(const DiffusionStep& args, const ThreadPool& pool);
void diffusion_step_backward(const DiffusionStepBackward& args, const ThreadPool& pool);
void normal_noise(const NormalNoise& args, const ThreadPool& pool);

}  // namespace fastdl::cpu
