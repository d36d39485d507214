#include "common/cpu/scratch.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_cpu.h"

namespace fastdl::cpu {
namespace {

struct ImplicitGemmTiles {
  void (*forward)(const ConvReluMaxpoolForward& args, const ThreadPool& pool);  // null: no tiles
};

}  // namespace
}  // namespace fastdl::cpu

#define FASTDL_ISA_SOURCE "ops/conv_relu_maxpool/implicit_gemm_tiles-inl.h"
#define FASTDL_ISA_MAX FASTDL_ISA_AMX
#include "common/cpu/foreach_isa.h"

namespace fastdl::cpu {

bool has_implicit_gemm_tiles() { return FASTDL_ISA_SELECT(kImplicitGemmTiles).forward != nullptr; }

void implicit_gemm_tiles_forward(const ConvReluMaxpoolForward& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kImplicitGemmTiles).forward(args, pool);
}

}  // namespace fastdl::cpu
