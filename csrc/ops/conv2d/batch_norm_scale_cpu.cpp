// scale = weight / sqrt(running_var + eps), shift = bias - (running_mean - conv_bias) scale.
// One thread: some thousand channels at most. Saves nothing.
#include <cmath>

#include "ops/conv2d/conv2d_cpu.h"

namespace fastdl::cpu {

void batch_norm_scale(const BatchNormScale& a) {
  const float eps = static_cast<float>(a.eps);
  for (int64_t c = 0; c < a.C; ++c) {
    const float rstd = 1 / std::sqrt(a.running_var[c] + eps);
    const float scale = a.weight == nullptr ? rstd : rstd * a.weight[c];
    const float centre = a.conv_bias == nullptr ? a.running_mean[c] : a.running_mean[c] - a.conv_bias[c];
    a.scale[c] = scale;
    a.shift[c] = (a.bias == nullptr ? 0 : a.bias[c]) - centre * scale;
  }
}

}  // namespace fastdl::cpu
