#include "common/cpu/scratch.h"
#include "common/philox.h"
#include "ops/linear/linear_cpu.h"

#define FASTDL_ISA_SOURCE "ops/linear/pass-inl.h"
#define FASTDL_ISA_MAX FASTDL_ISA_AVX512BF16
#include "common/cpu/foreach_isa.h"

namespace fastdl::cpu {

void linear_activation_forward(const LinearActivation& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kForward)[static_cast<int>(args.dtype)](args, pool);
}

void linear_activation_backward(const LinearActivationBackward& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kBackward)[static_cast<int>(args.dtype)](args, pool);
}

}  // namespace fastdl::cpu
