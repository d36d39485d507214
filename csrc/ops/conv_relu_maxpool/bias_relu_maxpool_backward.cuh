// grad_conv: each pooled gradient at the position its record names, zero elsewhere, summed where windows
// overlap. A gather: a thread owns 16 bytes of channels of one position (channels_last), one position (NCHW),
// or for 2x2
//   windows the four positions of each window; every element is written once, in an order that never changes.
// Saves nothing. Reads only the record (pooled) or the output (not pooled) of the forward pass.
#pragma once
#include "common/cuda/divide.cuh"
#include "ops/conv_relu_maxpool/bias_relu_maxpool_forward.cuh"

namespace fastdl::cuda {

template <class T>
struct PassBackward {
  const T *grad_output, *output;
  const uint8_t* record;
  T* grad_conv;
  int64_t conv_sample, output_sample;
  int C, CH, CW, OH, OW;
  Window window;
  fd::Divider by_inner, by_middle, by_outer;
  fd::Divider by_stride_h, by_stride_w;
  uint32_t items;
};

// What windows send to position (h, w) of V planes; at(oh, ow) is the offset of a pooled element in its
// sample.
template <class T, int V, class At>
FD_DEVICE fd::Vector<T, V> gather_windows(const PassBackward<T>& p, int h, int w, int64_t sample, At at) {
  fd::Compute<T> sum[V] = {};
  const Window& window = p.window;
  for (int kh = 0; kh < window.size_h; ++kh) {
    int top = h + window.padding_h - kh * window.dilation_h;
    if (top < 0) break;
    uint32_t oh = top;
    if (p.by_stride_h.split(oh) || static_cast<int>(oh) >= p.OH) continue;
    for (int kw = 0; kw < window.size_w; ++kw) {
      int left = w + window.padding_w - kw * window.dilation_w;
      if (left < 0) break;
      uint32_t ow = left;
      if (p.by_stride_w.split(ow) || static_cast<int>(ow) >= p.OW) continue;
      int64_t from = sample + at(oh, ow);
      auto record = fd::load_vector<V>(p.record + from);
      auto grad = fd::load_vector<V>(p.grad_output + from);
#pragma unroll
      for (int i = 0; i < V; ++i)
        if (record.value[i] == kh * window.size_w + kw) sum[i] += fd::to_compute(grad.value[i]);
    }
  }
  fd::Vector<T, V> result;
#pragma unroll
  for (int i = 0; i < V; ++i) result.value[i] = fd::from_compute<T>(sum[i]);
  return result;
}

// item = ((n * CH + h) * CW + w) * (C / V) + c / V
template <class T, int V>
__global__ void __launch_bounds__(kPassThreads) expand_channels_last_kernel(PassBackward<T> p) {
  uint32_t item = blockIdx.x * kPassThreads + threadIdx.x;
  if (item >= p.items) return;
  int c = p.by_inner.split(item) * V;
  int w = p.by_middle.split(item), h = p.by_outer.split(item), n = item;
  auto at = [&](int oh, int ow) { return (int64_t{oh} * p.OW + ow) * p.C + c; };
  auto grad = gather_windows<T, V>(p, h, w, n * p.output_sample, at);
  fd::store_vector<V>(p.grad_conv + n * p.conv_sample + (int64_t{h} * p.CW + w) * p.C + c, grad);
}

// item = ((n * C + c) * CH + h) * CW + w
template <class T>
__global__ void __launch_bounds__(kPassThreads) expand_kernel(PassBackward<T> p) {
  uint32_t item = blockIdx.x * kPassThreads + threadIdx.x;
  if (item >= p.items) return;
  int w = p.by_inner.split(item), h = p.by_middle.split(item), c = p.by_outer.split(item), n = item;
  auto at = [&](int oh, int ow) { return (int64_t{c} * p.OH + oh) * p.OW + ow; };
  auto grad = gather_windows<T, 1>(p, h, w, n * p.output_sample, at);
  p.grad_conv[n * p.conv_sample + (int64_t{c} * p.CH + h) * p.CW + w] = grad.value[0];
}

// 2x2 windows; rows and columns that no window covers are zero. Reads each gradient once and writes four
// vectors. item = ((n * ceil(CH / 2) + oh) * ceil(CW / 2) + ow) * (C / V) + c / V
template <class T, int V>
__global__ void __launch_bounds__(kPassThreads) expand_quads_channels_last_kernel(PassBackward<T> p) {
  uint32_t item = blockIdx.x * kPassThreads + threadIdx.x;
  if (item >= p.items) return;
  int c = p.by_inner.split(item) * V;
  int ow = p.by_middle.split(item), oh = p.by_outer.split(item), n = item;
  fd::Vector<T, V> grad{};
  fd::Vector<uint8_t, V> record;
#pragma unroll
  for (int i = 0; i < V; ++i) record.value[i] = kReluClosed;
  if (oh < p.OH && ow < p.OW) {
    int64_t from = n * p.output_sample + (int64_t{oh} * p.OW + ow) * p.C + c;
    grad = fd::load_vector<V>(p.grad_output + from);
    record = fd::load_vector<V>(p.record + from);
  }
#pragma unroll
  for (int position = 0; position < 4; ++position) {
    int h = 2 * oh + position / 2, w = 2 * ow + position % 2;
    if (h >= p.CH || w >= p.CW) continue;
    fd::Vector<T, V> part;
#pragma unroll
    for (int i = 0; i < V; ++i)
      part.value[i] = record.value[i] == position ? grad.value[i] : fd::from_compute<T>(0);
    fd::store_vector<V>(p.grad_conv + n * p.conv_sample + (int64_t{h} * p.CW + w) * p.C + c, part);
  }
}

// 2x2 windows, CW a multiple of V. item = ((n * C + c) * ceil(CH / 2) + oh) * (CW / V) + w / V
template <class T, int V>
__global__ void __launch_bounds__(kPassThreads) expand_quads_kernel(PassBackward<T> p) {
  uint32_t item = blockIdx.x * kPassThreads + threadIdx.x;
  if (item >= p.items) return;
  int w = p.by_inner.split(item) * V, oh = p.by_middle.split(item), c = p.by_outer.split(item), n = item;
  fd::Vector<T, V / 2> grad{};
  fd::Vector<uint8_t, V / 2> record;
#pragma unroll
  for (int i = 0; i < V / 2; ++i) record.value[i] = kReluClosed;
  if (oh < p.OH) {
    int64_t from = n * p.output_sample + (int64_t{c} * p.OH + oh) * p.OW + w / 2;
    grad = fd::load_vector<V / 2>(p.grad_output + from);
    record = fd::load_vector<V / 2>(p.record + from);
  }
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    int h = 2 * oh + row;
    if (h >= p.CH) continue;
    fd::Vector<T, V> part;
#pragma unroll
    for (int i = 0; i < V; ++i)
      part.value[i] = record.value[i / 2] == 2 * row + i % 2 ? grad.value[i / 2] : fd::from_compute<T>(0);
    fd::store_vector<V>(p.grad_conv + n * p.conv_sample + (int64_t{c} * p.CH + h) * p.CW + w, part);
  }
}

// No pool: the gradient where the ReLU is open. item = n * (C * CH * CW / V) + position / V, either memory
// format.
template <class T, int V>
__global__ void __launch_bounds__(kPassThreads) expand_relu_kernel(PassBackward<T> p) {
  uint32_t item = blockIdx.x * kPassThreads + threadIdx.x;
  if (item >= p.items) return;
  int64_t at = int64_t{p.by_inner.split(item)} * V;
  int n = item;
  auto grad = fd::load_vector<V>(p.grad_output + n * p.output_sample + at);
  auto output = fd::load_vector<V>(p.output + n * p.output_sample + at);
#pragma unroll
  for (int i = 0; i < V; ++i)
    if (fd::to_compute(output.value[i]) <= 0) grad.value[i] = fd::from_compute<T>(0);
  fd::store_vector<V>(p.grad_conv + n * p.conv_sample + at, grad);
}

}  // namespace fastdl::cuda
