// output = relu(max_pool2d(conv) + bias), after somebody else's convolution.
// channels_last: a thread makes 16 bytes of channels of one pooled pixel. NCHW: a thread makes one output, or
// for
//   2x2 windows the outputs under 16 bytes of two rows; every load and store is then a full vector, once.
// Saves for backward: one byte per pooled element (record), nothing at the convolution's resolution.
#pragma once
#include "ops/conv_relu_maxpool/pass_launch.cuh"
#include "ops/conv_relu_maxpool/window.cuh"

namespace fastdl::cuda {

template <class T>
struct PassForward {
  const T *conv, *bias;
  T* output;
  uint8_t* record;
  int64_t conv_sample, output_sample;  // elements from one sample to the next
  int C, CH, CW, OH, OW;
  Window window;
  fd::Divider by_inner, by_middle, by_outer;  // how an item's number splits, innermost first
  uint32_t items;
};

// item = ((n * OH + oh) * OW + ow) * (C / V) + c / V
template <class T, int V>
__global__ void __launch_bounds__(kPassThreads) bias_relu_maxpool_channels_last_kernel(PassForward<T> p) {
  uint32_t item = blockIdx.x * kPassThreads + threadIdx.x;
  if (item >= p.items) return;
  int c = p.by_inner.split(item) * V;
  int ow = p.by_middle.split(item), oh = p.by_outer.split(item), n = item;
  const T* conv = p.conv + n * p.conv_sample + c;
  fd::Vector<T, V> bias{};
  if (p.bias) bias = fd::load_vector<V>(p.bias + c);
  WindowMax<fd::Compute<T>> best[V];
  const Window& window = p.window;
  for (int kh = 0; kh < window.size_h; ++kh) {
    int h = oh * window.stride_h - window.padding_h + kh * window.dilation_h;
    if (static_cast<unsigned>(h) >= static_cast<unsigned>(p.CH)) continue;
    // Unrolled, 8 bytes spill on sm_100 and sm_120; the common 2x2 window has a kernel of its own below.
#pragma unroll 1
    for (int kw = 0; kw < window.size_w; ++kw) {
      int w = ow * window.stride_w - window.padding_w + kw * window.dilation_w;
      if (static_cast<unsigned>(w) >= static_cast<unsigned>(p.CW)) continue;
      auto v = fd::load_vector<V>(conv + (int64_t{h} * p.CW + w) * p.C);
#pragma unroll
      for (int i = 0; i < V; ++i) best[i].take(fd::to_compute(v.value[i]), kh * window.size_w + kw);
    }
  }
  fd::Vector<T, V> output;
  fd::Vector<uint8_t, V> record;
#pragma unroll
  for (int i = 0; i < V; ++i)
    output.value[i] = best[i].template finish<T>(fd::to_compute(bias.value[i]), record.value[i]);
  int64_t at = n * p.output_sample + (int64_t{oh} * p.OW + ow) * p.C + c;
  fd::store_vector<V>(p.output + at, output);
  if (p.record) fd::store_vector<V>(p.record + at, record);
}

// item = ((n * C + c) * OH + oh) * OW + ow
template <class T>
__global__ void __launch_bounds__(kPassThreads) bias_relu_maxpool_kernel(PassForward<T> p) {
  uint32_t item = blockIdx.x * kPassThreads + threadIdx.x;
  if (item >= p.items) return;
  int ow = p.by_inner.split(item), oh = p.by_middle.split(item), c = p.by_outer.split(item), n = item;
  const T* plane = p.conv + n * p.conv_sample + int64_t{c} * p.CH * p.CW;
  WindowMax<fd::Compute<T>> best;
  const Window& window = p.window;
  for (int kh = 0; kh < window.size_h; ++kh) {
    int h = oh * window.stride_h - window.padding_h + kh * window.dilation_h;
    if (static_cast<unsigned>(h) >= static_cast<unsigned>(p.CH)) continue;
#pragma unroll 1
    for (int kw = 0; kw < window.size_w; ++kw) {
      int w = ow * window.stride_w - window.padding_w + kw * window.dilation_w;
      if (static_cast<unsigned>(w) >= static_cast<unsigned>(p.CW)) continue;
      best.take(fd::to_compute(plane[int64_t{h} * p.CW + w]), kh * window.size_w + kw);
    }
  }
  uint8_t record;
  T output = best.template finish<T>(p.bias ? fd::to_compute(p.bias[c]) : 0, record);
  int64_t at = n * p.output_sample + (int64_t{c} * p.OH + oh) * p.OW + ow;
  p.output[at] = output;
  if (p.record) p.record[at] = record;
}

// 2x2 windows, channels_last: all four loads are under way at once. Items as above.
template <class T, int V>
__global__ void __launch_bounds__(kPassThreads)
    bias_relu_maxpool_quads_channels_last_kernel(PassForward<T> p) {
  uint32_t item = blockIdx.x * kPassThreads + threadIdx.x;
  if (item >= p.items) return;
  int c = p.by_inner.split(item) * V;
  int ow = p.by_middle.split(item), oh = p.by_outer.split(item), n = item;
  const T* pixel = p.conv + n * p.conv_sample + (int64_t{2 * oh} * p.CW + 2 * ow) * p.C + c;
  const int64_t row = int64_t{p.CW} * p.C;
  fd::Vector<T, V> window[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) window[i] = fd::load_vector<V>(pixel + i / 2 * row + i % 2 * p.C);
  fd::Vector<T, V> bias{}, output;
  if (p.bias) bias = fd::load_vector<V>(p.bias + c);
  fd::Vector<uint8_t, V> record;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    WindowMax<fd::Compute<T>> best;
#pragma unroll
    for (int at = 0; at < 4; ++at) best.take(fd::to_compute(window[at].value[i]), at);
    output.value[i] = best.template finish<T>(fd::to_compute(bias.value[i]), record.value[i]);
  }
  int64_t at = n * p.output_sample + (int64_t{oh} * p.OW + ow) * p.C + c;
  fd::store_vector<V>(p.output + at, output);
  if (p.record) fd::store_vector<V>(p.record + at, record);
}

// 2x2 windows, CW a multiple of V, V elements are 16 bytes. item = ((n * C + c) * OH + oh) * (CW / V) + w / V
template <class T, int V>
__global__ void __launch_bounds__(kPassThreads) bias_relu_maxpool_quads_kernel(PassForward<T> p) {
  uint32_t item = blockIdx.x * kPassThreads + threadIdx.x;
  if (item >= p.items) return;
  int w = p.by_inner.split(item) * V, oh = p.by_middle.split(item), c = p.by_outer.split(item), n = item;
  const T* row = p.conv + n * p.conv_sample + (int64_t{c} * p.CH + 2 * oh) * p.CW + w;
  auto upper = fd::load_vector<V>(row), lower = fd::load_vector<V>(row + p.CW);
  auto bias = p.bias ? fd::to_compute(p.bias[c]) : 0;
  fd::Vector<T, V / 2> output;
  fd::Vector<uint8_t, V / 2> record;
#pragma unroll
  for (int i = 0; i < V / 2; ++i) {
    WindowMax<fd::Compute<T>> best;
    best.take(fd::to_compute(upper.value[2 * i]), 0);
    best.take(fd::to_compute(upper.value[2 * i + 1]), 1);
    best.take(fd::to_compute(lower.value[2 * i]), 2);
    best.take(fd::to_compute(lower.value[2 * i + 1]), 3);
    output.value[i] = best.template finish<T>(bias, record.value[i]);
  }
  int64_t at = n * p.output_sample + (int64_t{c} * p.OH + oh) * p.OW + w / 2;
  fd::store_vector<V / 2>(p.output + at, output);
  if (p.record) fd::store_vector<V / 2>(p.record + at, record);
}

// No pool, NCHW: relu(conv + bias). item = (n * C + c) * (CH * CW / V) + position / V
template <class T, int V>
__global__ void __launch_bounds__(kPassThreads) bias_relu_kernel(PassForward<T> p) {
  uint32_t item = blockIdx.x * kPassThreads + threadIdx.x;
  if (item >= p.items) return;
  int position = p.by_inner.split(item) * V, c = p.by_middle.split(item), n = item;
  int64_t at = int64_t{c} * p.CH * p.CW + position;
  auto v = fd::load_vector<V>(p.conv + n * p.conv_sample + at);
  auto bias = p.bias ? fd::to_compute(p.bias[c]) : 0;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    T rounded = fd::from_compute<T>(fd::to_compute(v.value[i]) + bias);
    v.value[i] = fd::to_compute(rounded) <= 0 ? fd::from_compute<T>(0) : rounded;
  }
  fd::store_vector<V>(p.output + n * p.output_sample + at, v);
}

}  // namespace fastdl::cuda
