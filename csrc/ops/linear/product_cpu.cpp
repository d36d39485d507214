#include "common/cpu/scratch.h"
#include "ops/linear/linear_cpu.h"

#define FASTDL_ISA_SOURCE "ops/linear/product_cpu-inl.h"
#define FASTDL_ISA_MAX FASTDL_ISA_AMX
#include "common/cpu/foreach_isa.h"

namespace fastdl::cpu {

void linear_product(const LinearProduct& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kProduct)[0](args, pool);
}

}  // namespace fastdl::cpu
