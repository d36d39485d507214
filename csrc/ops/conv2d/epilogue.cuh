// y = activation(scale y + bias + residual), in place after somebody else's convolution.
// A thread makes 16 bytes of one plane (contiguous) or of one pixel's channels (channels_last), or one value.
// Saves nothing.
#pragma once
#include "common/cuda/activation.cuh"
#include "common/cuda/scalar.cuh"
#include "ops/conv_relu_maxpool/pass_launch.cuh"

namespace fastdl::cuda {

template <class T>
struct EpiloguePass {
  T* y;
  const T *bias, *scale, *residual;  // or null
  Activation activation;
  uint32_t first_channel;  // contiguous: of the launch's first plane
  fd::Divider by_channels, by_inner, by_middle, by_outer;
  uint32_t items;
};

template <class T, int V>
FD_DEVICE fd::Vector<T, V> repeated(T value) {
  fd::Vector<T, V> v;
#pragma unroll
  for (int i = 0; i < V; ++i) v.value[i] = value;
  return v;
}

// Chosen at run time: the kernel waits for memory, and one for each activation would be nine times as many.
template <class C>
FD_DEVICE C activated(C x, Activation activation) {
  switch (activation) {
    case Activation::kGelu:
      return activate<Activation::kGelu>(x);
    case Activation::kGeluTanh:
      return activate<Activation::kGeluTanh>(x);
    case Activation::kSilu:
      return activate<Activation::kSilu>(x);
    case Activation::kTanh:
      return activate<Activation::kTanh>(x);
    case Activation::kSigmoid:
      return activate<Activation::kSigmoid>(x);
    case Activation::kRelu6:
      return activate<Activation::kRelu6>(x);
    case Activation::kHardswish:
      return activate<Activation::kHardswish>(x);
    default:
      return x;  // a ReLU follows the rounding
  }
}

template <class T, int V>
FD_DEVICE void finish(const EpiloguePass<T>& p, uint32_t item, const fd::Vector<T, V>& scale,
                      const fd::Vector<T, V>& bias) {
  const int64_t at = int64_t{item} * V;
  fd::Vector<T, V> y = fd::load_vector<V>(p.y + at), residual{};
  if (p.residual) residual = fd::load_vector<V>(p.residual + at);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    fd::Compute<T> v = fd::to_compute(y.value[i]) * fd::to_compute(scale.value[i]) +
                       fd::to_compute(bias.value[i]) + fd::to_compute(residual.value[i]);
    T rounded = fd::from_compute<T>(activated(v, p.activation));
    const bool closed = p.activation == Activation::kRelu && fd::to_compute(rounded) <= 0;
    y.value[i] = closed ? fd::from_compute<T>(0) : rounded;
  }
  fd::store_vector<V>(p.y + at, y);
}

// item = (n * C + c) * (plane / V) + position / V
template <class T, int V>
__global__ void __launch_bounds__(kPassThreads) conv2d_epilogue_kernel(EpiloguePass<T> p) {
  const uint32_t item = blockIdx.x * kPassThreads + threadIdx.x;
  if (item >= p.items) return;
  uint32_t plane = p.first_channel + p.by_inner.quotient(item);
  const uint32_t c = p.by_channels.split(plane);
  const T scale = p.scale ? p.scale[c] : fd::from_compute<T>(1);
  const T bias = p.bias ? p.bias[c] : fd::from_compute<T>(0);
  finish<T, V>(p, item, repeated<T, V>(scale), repeated<T, V>(bias));
}

// item = (n * plane + position) * (C / V) + c / V
template <class T, int V>
__global__ void __launch_bounds__(kPassThreads) conv2d_epilogue_channels_last_kernel(EpiloguePass<T> p) {
  const uint32_t item = blockIdx.x * kPassThreads + threadIdx.x;
  if (item >= p.items) return;
  uint32_t pixel = item;
  const uint32_t c = p.by_inner.split(pixel) * V;
  fd::Vector<T, V> scale = repeated<T, V>(fd::from_compute<T>(1)), bias{};
  if (p.scale) scale = fd::load_vector<V>(p.scale + c);
  if (p.bias) bias = fd::load_vector<V>(p.bias + c);
  finish<T, V>(p, item, scale, bias);
}

}  // namespace fastdl::cuda
