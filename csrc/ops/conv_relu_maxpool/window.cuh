// One pooling window: which value wins, and what bias and ReLU make of it. Used by every forward kernel.
#pragma once
#include "common/cuda/scalar.cuh"
#include "ops/conv_relu_maxpool/conv_relu_maxpool.h"

namespace fastdl::cuda {

// Pairs are (height, width).
struct Window {
  int size_h = 1, size_w = 1, stride_h = 1, stride_w = 1, padding_h = 0, padding_w = 0, dilation_h = 1,
      dilation_w = 1;

  Window() = default;
  explicit Window(const PoolGeometry& pool) {
    if (!pool.present) return;
    size_h = pool.size[0], size_w = pool.size[1];
    stride_h = pool.stride[0], stride_w = pool.stride[1];
    padding_h = pool.padding[0], padding_w = pool.padding[1];
    dilation_h = pool.dilation[0], dilation_w = pool.dilation[1];
  }
  // 2x2 windows side by side: four positions belong to one window and no other.
  bool quads() const {
    return size_h == 2 && size_w == 2 && stride_h == 2 && stride_w == 2 && padding_h == 0 && padding_w == 0 &&
           dilation_h == 1 && dilation_w == 1;
  }
};

// As torch: of equal values the first wins, of NaNs the last.
template <class C>
struct WindowMax {
  C value = -INFINITY;
  int offset = -1;  // kh * size_w + kw; -1: nothing inside the plane yet

  FD_DEVICE void take(C v, int at) {
    if (offset < 0 || v > value || v != v) {
      value = v;
      offset = at;
    }
  }
  // relu(value + bias), rounded to T, and its record. A window without any position gives -inf, as torch
  // does.
  template <class T>
  FD_DEVICE T finish(C bias, uint8_t& record) const {
    T rounded = fd::from_compute<T>(value + bias);
    bool closed = fd::to_compute(rounded) <= 0;
    record = closed || offset < 0 ? kReluClosed : static_cast<uint8_t>(offset);
    if (offset < 0) return fd::from_compute<T>(-INFINITY);
    return closed ? fd::from_compute<T>(0) : rounded;
  }
};

// Of a plane of one element the strides tell nothing: then the other tensor of the pass does.
inline bool channels_last(const int64_t (&conv)[4], int64_t CH, int64_t CW, const int64_t (&output)[4],
                          int64_t C) {
  return C > 1 && (CH * CW > 1 ? conv[1] : output[1]) == 1;
}

}  // namespace fastdl::cuda
