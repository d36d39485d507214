#include "common/cpu/scratch.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_cpu.h"

namespace fastdl::cpu {
namespace {

struct ImplicitGemmKernels {
  void (*forward)(const ConvReluMaxpoolForward& args, const ThreadPool& pool);
  void (*conv2d)(const Conv2dForward& args, const ThreadPool& pool);
};

}  // namespace
}  // namespace fastdl::cpu

#define FASTDL_ISA_SOURCE "ops/conv_relu_maxpool/implicit_gemm-inl.h"
#define FASTDL_ISA_MAX FASTDL_ISA_AVX512
#include "common/cpu/foreach_isa.h"

namespace fastdl::cpu {

void implicit_gemm_forward(const ConvReluMaxpoolForward& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kImplicitGemm).forward(args, pool);
}

void implicit_gemm_conv2d(const Conv2dForward& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kImplicitGemm).conv2d(args, pool);
}

}  // namespace fastdl::cpu
