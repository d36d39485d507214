#include "common/cpu/scratch.h"
#include "ops/conv2d/conv2d_cpu.h"

#define FASTDL_ISA_SOURCE "ops/conv2d/depthwise-inl.h"
#define FASTDL_ISA_MAX FASTDL_ISA_AVX512
#include "common/cpu/foreach_isa.h"

namespace fastdl::cpu {

void depthwise_conv2d(const Conv2dForward& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kDepthwise)[static_cast<int>(args.dtype)](args, pool);
}

}  // namespace fastdl::cpu
