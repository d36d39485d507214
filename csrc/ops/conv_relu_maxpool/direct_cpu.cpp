#include "common/cpu/scratch.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_cpu.h"

#define FASTDL_ISA_SOURCE "ops/conv_relu_maxpool/direct-inl.h"
#define FASTDL_ISA_MAX FASTDL_ISA_AVX512
#include "common/cpu/foreach_isa.h"

namespace fastdl::cpu {

void direct_forward(const ConvReluMaxpoolForward& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kDirectForward)[static_cast<int>(args.dtype)](args, pool);
}

void direct_backward(const ConvReluMaxpoolBackward& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kDirectBackward)[static_cast<int>(args.dtype)](args, pool);
}

}  // namespace fastdl::cpu
