// Kernels still to come; dispatch does not choose them.
#include <cstdlib>

#include "ops/conv_relu_maxpool/conv_relu_maxpool_cpu.h"

namespace fastdl::cpu {

void direct_forward(const ConvReluMaxpoolForward&, const ThreadPool&) { std::abort(); }

}  // namespace fastdl::cpu
