#include "common/cpu/scratch.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_cpu.h"
#include "ops/conv_relu_maxpool/winograd_plan.h"
#include "ops/conv_relu_maxpool/winograd_weight.h"

namespace fastdl::cpu {
namespace {

struct WinogradKernels {
  // u: the packed weight, or null: packed for this call
  void (*forward)(const ConvReluMaxpoolForward& args, const float* u, const ThreadPool& pool);
  void (*conv2d)(const Conv2dForward& args, const float* u, const ThreadPool& pool);
  void (*backward)(const ConvReluMaxpoolBackward& args, const ThreadPool& pool);
  int64_t (*packed_floats)(int64_t K, int64_t C, int64_t tile);
  void (*pack)(const PackableWeight& weight, float* u, const ThreadPool& pool);
};

// Without what no window of the pool covers.
WinogradShape forward_shape(const ConvReluMaxpoolForward& args) {
  const ConvGeometry& g = args.conv;
  const int64_t OH = args.pool.present && 2 * args.pool.OH < g.CH ? 2 * args.pool.OH : g.CH;
  const int64_t OW = args.pool.present && 2 * args.pool.OW < g.CW ? 2 * args.pool.OW : g.CW;
  return {g.N, g.C, g.H, g.W, g.C_out, OH, OW, {g.padding[0], g.padding[1]}};
}

WinogradShape forward_shape(const Conv2dForward& args) {
  const ConvGeometry& g = args.conv;
  return {g.N, g.C, g.H, g.W, g.C_out, g.CH, g.CW, {g.padding[0], g.padding[1]}};
}

}  // namespace
}  // namespace fastdl::cpu

#define FASTDL_ISA_SOURCE "ops/conv_relu_maxpool/winograd_cpu-inl.h"
#define FASTDL_ISA_MAX FASTDL_ISA_AVX512
#include "common/cpu/foreach_isa.h"

namespace fastdl::cpu {

namespace {

// Args: ConvReluMaxpoolForward or Conv2dForward
template <class Args>
std::shared_ptr<const float> kept_weight(const WinogradKernels& kernels, const Args& args,
                                         const ThreadPool& pool) {
  const int64_t K = args.conv.C_out, C = args.conv.C;
  if (args.conv.N * K * C == 0) return nullptr;
  const int64_t tile = winograd_tile(forward_shape(args));
  return cached_packed_weight({args.weight, K, C, tile, args.dtype, args.weight_channels_last},
                              static_cast<size_t>(kernels.packed_floats(K, C, tile)), pool,
                              [&](const PackableWeight& copy, float* u) { kernels.pack(copy, u, pool); });
}

}  // namespace

void winograd_forward(const ConvReluMaxpoolForward& args, const ThreadPool& pool) {
  const WinogradKernels& kernels = FASTDL_ISA_SELECT(kWinograd);
  std::shared_ptr<const float> packed;
  if (!args.training && args.record == nullptr) packed = kept_weight(kernels, args, pool);
  kernels.forward(args, packed.get(), pool);
}

void winograd_conv2d(const Conv2dForward& args, const ThreadPool& pool) {
  const WinogradKernels& kernels = FASTDL_ISA_SELECT(kWinograd);
  std::shared_ptr<const float> packed;
  if (!args.training) packed = kept_weight(kernels, args, pool);
  kernels.conv2d(args, packed.get(), pool);
}

void winograd_backward(const ConvReluMaxpoolBackward& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kWinograd).backward(args, pool);
}

}  // namespace fastdl::cpu
