// Launchers of the passes around somebody else's convolution: forward, expanded gradient, gradient of the
// bias.
#include <algorithm>

#include "ops/conv_relu_maxpool/bias_relu_maxpool_backward.cuh"
#include "ops/conv_relu_maxpool/bias_relu_maxpool_forward.cuh"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_cuda.h"
#include "ops/conv_relu_maxpool/grad_bias.cuh"
#include "ops/conv_relu_maxpool/pass_launch.cuh"

namespace fastdl::cuda {
namespace {

constexpr int kMaxSplits = 256;

template <class T>
cudaError_t forward(const BiasReluMaxpoolForward& f, cudaStream_t stream) {
  constexpr int V = kVector<T>;
  PassForward<T> p{};
  p.conv = static_cast<const T*>(f.conv), p.bias = static_cast<const T*>(f.bias);
  p.output = static_cast<T*>(f.output), p.record = f.record;
  p.conv_sample = f.conv_strides[0], p.output_sample = f.output_strides[0];
  p.C = f.C, p.CH = f.CH, p.CW = f.CW, p.OH = f.pool.OH, p.OW = f.pool.OW;
  p.window = Window(f.pool);
  auto advance = [](PassForward<T>& q, int64_t samples) {
    q.conv += samples * q.conv_sample;
    q.output += samples * q.output_sample;
    if (q.record) q.record += samples * q.output_sample;
  };
  auto run = [&](auto kernel, int64_t inner, int64_t middle, int64_t outer) {
    return launch_pass(kernel, p, f.N, inner, middle, outer, advance, stream);
  };
  bool vectors = fd::aligned(f.conv, 16) && fd::aligned(f.output, 16) && fd::aligned(f.record, V) &&
                 p.conv_sample % V == 0 && p.output_sample % V == 0;
  const bool quads = p.window.quads() && 2 * p.OH <= p.CH && 2 * p.OW <= p.CW;
  if (channels_last(f.conv_strides, f.CH, f.CW, f.output_strides, f.C)) {
    const bool wide = vectors && p.C % V == 0 && fd::aligned(f.bias, 16);
    if (wide && quads) return run(bias_relu_maxpool_quads_channels_last_kernel<T, V>, p.C / V, p.OW, p.OH);
    if (wide) return run(bias_relu_maxpool_channels_last_kernel<T, V>, p.C / V, p.OW, p.OH);
    return run(bias_relu_maxpool_channels_last_kernel<T, 1>, p.C, p.OW, p.OH);
  }
  if (!f.pool.present) {
    int64_t plane = f.CH * f.CW;
    if (vectors && plane % V == 0) return run(bias_relu_kernel<T, V>, plane / V, p.C, 1);
    return run(bias_relu_kernel<T, 1>, plane, p.C, 1);
  }
  if (vectors && quads && p.CW % V == 0)
    return run(bias_relu_maxpool_quads_kernel<T, V>, p.CW / V, p.OH, p.C);
  return run(bias_relu_maxpool_kernel<T>, p.OW, p.OH, p.C);
}

bool is_channels_last(const BiasReluMaxpoolBackward& b) {
  return channels_last(b.grad_conv_strides, b.CH, b.CW, b.grad_output_strides, b.C);
}

template <class T>
cudaError_t expand(const BiasReluMaxpoolBackward& b, cudaStream_t stream) {
  constexpr int V = kVector<T>;
  PassBackward<T> p{};
  p.grad_output = static_cast<const T*>(b.grad_output), p.output = static_cast<const T*>(b.output);
  p.record = b.record, p.grad_conv = static_cast<T*>(b.grad_conv);
  p.conv_sample = b.grad_conv_strides[0], p.output_sample = b.grad_output_strides[0];
  p.C = b.C, p.CH = b.CH, p.CW = b.CW, p.OH = b.pool.OH, p.OW = b.pool.OW;
  p.window = Window(b.pool);
  p.by_stride_h = fd::Divider(p.window.stride_h), p.by_stride_w = fd::Divider(p.window.stride_w);
  auto advance = [](PassBackward<T>& q, int64_t samples) {
    q.grad_output += samples * q.output_sample;
    if (q.output) q.output += samples * q.output_sample;
    if (q.record) q.record += samples * q.output_sample;
    q.grad_conv += samples * q.conv_sample;
  };
  auto run = [&](auto kernel, int64_t inner, int64_t middle, int64_t outer) {
    return launch_pass(kernel, p, b.N, inner, middle, outer, advance, stream);
  };
  bool vectors = fd::aligned(b.grad_output, 16) && fd::aligned(b.grad_conv, 16) &&
                 fd::aligned(b.output, 16) && fd::aligned(b.record, V) && p.conv_sample % V == 0 &&
                 p.output_sample % V == 0;
  if (!b.pool.present) {
    int64_t sample = b.C * b.CH * b.CW;
    if (vectors && sample % V == 0) return run(expand_relu_kernel<T, V>, sample / V, 1, 1);
    return run(expand_relu_kernel<T, 1>, sample, 1, 1);
  }
  bool quads = p.window.quads() && 2 * p.OH <= p.CH && 2 * p.OW <= p.CW;
  int64_t half_h = (p.CH + 1) / 2, half_w = (p.CW + 1) / 2;
  if (is_channels_last(b)) {
    bool wide = vectors && p.C % V == 0;
    if (quads && wide) return run(expand_quads_channels_last_kernel<T, V>, p.C / V, half_w, half_h);
    if (wide) return run(expand_channels_last_kernel<T, V>, p.C / V, p.CW, p.CH);
    return run(expand_channels_last_kernel<T, 1>, p.C, p.CW, p.CH);
  }
  if (quads && vectors && p.CW % V == 0) return run(expand_quads_kernel<T, V>, p.CW / V, half_h, p.C);
  return run(expand_kernel<T>, p.CW, p.CH, p.C);
}

int bias_splits(const BiasReluMaxpoolBackward& b) {
  // NCHW: one sample a block is enough work. channels_last: 1024 pixels a block.
  int64_t pieces = is_channels_last(b) ? (b.N * b.pool.OH * b.pool.OW + 1023) / 1024 : b.N;
  return static_cast<int>(std::min<int64_t>(pieces, kMaxSplits));
}

template <class T>
cudaError_t grad_bias(const BiasReluMaxpoolBackward& b, void* workspace, cudaStream_t stream) {
  constexpr int V = kVector<T>;
  BiasGradient<T> p{};
  p.grad_output = static_cast<const T*>(b.grad_output), p.output = static_cast<const T*>(b.output);
  p.record = b.record;
  p.partial = static_cast<fd::Compute<T>*>(workspace), p.grad_bias = static_cast<T*>(b.grad_bias);
  p.sample = b.grad_output_strides[0], p.N = b.N, p.plane = b.pool.OH * b.pool.OW;
  p.C = b.C, p.offsets = p.record ? b.pool.size[0] * b.pool.size[1] : 0;
  p.splits = bias_splits(b);
  const dim3 block(kPassThreads);
  bool vectors = fd::aligned(b.grad_output, 16) && fd::aligned(b.output, 16) && fd::aligned(b.record, V) &&
                 p.sample % V == 0;
  cudaError_t error = cudaSuccess;
  if (p.splits && is_channels_last(b)) {
    auto run = [&](auto kernel, int vectors_of_channels) {
      int columns = std::min(vectors_of_channels, kPassThreads);
      dim3 grid((vectors_of_channels + columns - 1) / columns, p.splits);
      return fd::launch(kernel, {grid, block}, stream, p, columns);
    };
    error = vectors && p.C % V == 0 ? run(grad_bias_partial_channels_last_kernel<T, V>, p.C / V)
                                    : run(grad_bias_partial_channels_last_kernel<T, 1>, p.C);
  } else if (p.splits) {
    auto kernel =
        vectors && p.plane % V == 0 ? grad_bias_partial_kernel<T, V> : grad_bias_partial_kernel<T, 1>;
    error = fd::launch(kernel, {dim3(p.C, p.splits), block}, stream, p);
  }
  if (error) return error;
  return fd::launch(grad_bias_kernel<T>, {dim3((p.C + kPassThreads - 1) / kPassThreads), block}, stream, p);
}

}  // namespace

cudaError_t bias_relu_maxpool_forward(const BiasReluMaxpoolForward& p, cudaStream_t stream) {
  if (p.N * p.C * p.pool.OH * p.pool.OW == 0) return cudaSuccess;
  return fd::with_type(p.dtype, [&](auto zero) { return forward<decltype(zero)>(p, stream); });
}

int64_t bias_relu_maxpool_backward_workspace(const BiasReluMaxpoolBackward& p) {
  if (!p.grad_bias) return 0;
  return bias_splits(p) * p.C *
         static_cast<int64_t>(p.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float));
}

cudaError_t bias_relu_maxpool_backward(const BiasReluMaxpoolBackward& p, void* workspace,
                                       cudaStream_t stream) {
  return fd::with_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    cudaError_t error = cudaSuccess;
    if (p.grad_conv && p.N * p.C * p.CH * p.CW > 0) error = expand<T>(p, stream);
    if (error == cudaSuccess && p.grad_bias && p.C > 0) error = grad_bias<T>(p, workspace, stream);
    return error;
  });
}

}  // namespace fastdl::cuda
