#include "ops/diffusion/diffusion_cpu.h"

#include "common/cpu/scratch.h"

#define FASTDL_ISA_SOURCE "ops/diffusion/diffusion_cpu-inl.h"
#define FASTDL_ISA_MAX FASTDL_ISA_AVX512
#include "common/cpu/foreach_isa.h"

namespace fastdl::cpu {

void diffusion_step(const DiffusionStep& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kStep)[static_cast<int>(args.dtype)](args, pool);
}

void diffusion_step_backward(const DiffusionStepBackward& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kStepBackward)[static_cast<int>(args.dtype)](args, pool);
}

void normal_noise(const NormalNoise& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kNormalNoise)[static_cast<int>(args.dtype)](args, pool);
}

}  // namespace fastdl::cpu
