#include "common/cpu/scratch.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_cpu.h"
#include "ops/conv_relu_maxpool/winograd_plan.h"
#include "ops/conv_relu_maxpool/winograd_weight.h"

namespace fastdl::cpu {
namespace {

struct WinogradKernels {
  // u: the packed weight, or null: packed for this call
  void (*forward)(const ConvReluMaxpoolForward& args, const float* u, const ThreadPool& pool);
  void (*backward)(const ConvReluMaxpoolBackward& args, const ThreadPool& pool);
  int64_t (*packed_floats)(int64_t K, int64_t C);
  // `weight`: args.weight, or an equal copy of it
  void (*pack)(const ConvReluMaxpoolForward& args, const void* weight, float* u, const ThreadPool& pool);
};

}  // namespace
}  // namespace fastdl::cpu

#define FASTDL_ISA_SOURCE "ops/conv_relu_maxpool/winograd_cpu-inl.h"
#define FASTDL_ISA_MAX FASTDL_ISA_AVX512
#include "common/cpu/foreach_isa.h"

namespace fastdl::cpu {

void winograd_forward(const ConvReluMaxpoolForward& args, const ThreadPool& pool) {
  const WinogradKernels& kernels = FASTDL_ISA_SELECT(kWinograd);
  const int64_t K = args.conv.C_out, C = args.conv.C;
  std::shared_ptr<const float> packed;
  if (!args.training && args.record == nullptr && args.conv.N * K * C > 0)
    packed = cached_packed_weight({args.weight, K, C, args.dtype, args.weight_channels_last},
                                  static_cast<size_t>(kernels.packed_floats(K, C)),
                                  [&](const void* weight, float* u) { kernels.pack(args, weight, u, pool); });
  kernels.forward(args, packed.get(), pool);
}

void winograd_backward(const ConvReluMaxpoolBackward& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kWinograd).backward(args, pool);
}

}  // namespace fastdl::cpu
