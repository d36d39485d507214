#include "common/cpu/scratch.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_cpu.h"
#include "ops/conv_relu_maxpool/winograd_plan.h"

namespace fastdl::cpu {
namespace {
struct WinogradKernels {
  void (*forward)(const ConvReluMaxpoolForward& args, const ThreadPool& pool);
  void (*backward)(const ConvReluMaxpoolBackward& args, const ThreadPool& pool);
};
}  // namespace
}  // namespace fastdl::cpu

#define FASTDL_ISA_SOURCE "ops/conv_relu_maxpool/winograd_cpu-inl.h"
#define FASTDL_ISA_MAX FASTDL_ISA_AVX512
#include "common/cpu/foreach_isa.h"

namespace fastdl::cpu {

void winograd_forward(const ConvReluMaxpoolForward& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kWinograd).forward(args, pool);
}

void winograd_backward(const ConvReluMaxpoolBackward& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kWinograd).backward(args, pool);
}

}  // namespace fastdl::cpu
