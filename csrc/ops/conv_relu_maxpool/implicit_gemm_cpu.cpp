#include "common/cpu/scratch.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_cpu.h"

#define FASTDL_ISA_SOURCE "ops/conv_relu_maxpool/implicit_gemm-inl.h"
#define FASTDL_ISA_MAX FASTDL_ISA_AVX512
#include "common/cpu/foreach_isa.h"

namespace fastdl::cpu {

void implicit_gemm_forward(const ConvReluMaxpoolForward& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kImplicitGemmForward)[0](args, pool);
}

}  // namespace fastdl::cpu
