#include "common/cpu/scratch.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_cpu.h"

#define FASTDL_ISA_SOURCE "ops/conv_relu_maxpool/bias_relu_maxpool-inl.h"
#define FASTDL_ISA_MAX FASTDL_ISA_AVX512
#include "common/cpu/foreach_isa.h"

namespace fastdl::cpu {

void bias_relu_maxpool_forward(const BiasReluMaxpoolForward& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kForward)[static_cast<int>(args.dtype)](args, pool);
}

void bias_relu_maxpool_backward(const BiasReluMaxpoolBackward& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kBackward)[static_cast<int>(args.dtype)](args, pool);
}

}  // namespace fastdl::cpu
