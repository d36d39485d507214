// relu(max_pool2d(conv) + bias) after somebody else's convolution, forward and backward: chooses by dtype and
// memory format. Work is split over planes (contiguous) or rows of an image (channels_last). Saves the
// record.

// clang-format off: in the order of use
#include "ops/conv_relu_maxpool/bias_relu_maxpool_window-inl.h"
#include "ops/conv_relu_maxpool/bias_relu_maxpool_contiguous-inl.h"
#include "ops/conv_relu_maxpool/bias_relu_maxpool_channels_last-inl.h"
#include "ops/conv_relu_maxpool/bias_relu_maxpool_backward_contiguous-inl.h"
#include "ops/conv_relu_maxpool/bias_relu_maxpool_backward_channels_last-inl.h"
// clang-format on

template <class T>
void forward(const BiasReluMaxpoolForward& a, const ThreadPool& pool) {
  if (is_contiguous(a.C, a.CH, a.CW, a.conv_strides) &&
      is_contiguous(a.C, a.pool.OH, a.pool.OW, a.output_strides))
    forward_contiguous<T>(a, pool);
  else
    forward_channels_last<T>(a, pool);
}

template <class T>
void backward(const BiasReluMaxpoolBackward& a, const ThreadPool& pool) {
  if (is_contiguous(a.C, a.CH, a.CW, a.grad_conv_strides) &&
      is_contiguous(a.C, a.pool.OH, a.pool.OW, a.grad_output_strides))
    backward_contiguous<T>(a, pool);
  else
    backward_channels_last<T>(a, pool);
}

// By DType. AVX-512 takes the fp64 of AVX2: it moves bytes more than it computes.
inline constexpr void (*kForward[4])(const BiasReluMaxpoolForward&, const ThreadPool&) = {
#if FASTDL_ISA >= FASTDL_ISA_AVX512
    avx2::kForward[0],
#else
    forward<double>,
#endif
    forward<float>, forward<Float16>, forward<BFloat16>};
inline constexpr void (*kBackward[4])(const BiasReluMaxpoolBackward&, const ThreadPool&) = {
#if FASTDL_ISA >= FASTDL_ISA_AVX512
    avx2::kBackward[0],
#else
    backward<double>,
#endif
    backward<float>, backward<Float16>, backward<BFloat16>};
