#include "ops/sublayer/sublayer_cpu.h"

#define FASTDL_ISA_SOURCE "ops/sublayer/norm-inl.h"
#define FASTDL_ISA_MAX FASTDL_ISA_AVX512
#include "common/cpu/foreach_isa.h"

namespace fastdl::cpu {

void residual_norm(const NormForward& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kNorm)[0](args, pool);
}

}  // namespace fastdl::cpu
