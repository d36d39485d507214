// y = activation(scale y + bias + residual), in place after somebody else's convolution.
// Work is split over planes (contiguous) or pixels (channels_last). Saves nothing.

#include "common/cpu/math-inl.h"
#include "ops/conv_relu_maxpool/bias_relu_maxpool_window-inl.h"
// clang-format off: in the order of use
#include "common/cpu/math_activation-inl.h"
#include "ops/conv2d/epilogue-inl.h"
// clang-format on

template <bool kResidual, bool kRelu, class T>
void finish_image(const Conv2dEpilogue& a, const ThreadPool& pool) {
  using Scalar = typename Compute<T>::Scalar;
  // Scales and biases in the type of the arithmetic, to the end of a vector.
  constexpr int64_t lanes = sizeof(typename Compute<T>::V) / sizeof(Scalar);
  const int64_t channels = (a.C + lanes - 1) / lanes * lanes;
  Scalar* scale = static_cast<Scalar*>(thread_scratch(2 * static_cast<size_t>(channels) * sizeof(Scalar)));
  Scalar* bias = scale + channels;
  const T *scales = static_cast<const T*>(a.scale), *biases = static_cast<const T*>(a.bias);
  for (int64_t c = 0; c < channels; ++c) {
    scale[c] = c < a.C && scales != nullptr ? to_scalar(scales[c]) : Scalar{1};
    bias[c] = c < a.C && biases != nullptr ? to_scalar(biases[c]) : Scalar{0};
  }
  T* y = static_cast<T*>(a.y);
  const T* residual = static_cast<const T*>(a.residual);
  const auto at = [&](int64_t i) { return kResidual ? residual + i : nullptr; };
  // The channels of a single pixel are neighbours in both layouts.
  const bool by_pixel = a.channels_last || a.plane == 1;
  const int64_t run = by_pixel ? a.C : a.plane, runs = by_pixel ? a.N * a.plane : a.N * a.C;
  const int64_t some = run < kTaskElements ? kTaskElements / run : 1;
  parallel_tasks(pool, (runs + some - 1) / some, [&](int64_t task, int64_t) {
    for (int64_t i = task * some; i < smaller(runs, (task + 1) * some); ++i) {
      T* const to = y + i * run;
      if (by_pixel)
        finish_pixel<kResidual, kRelu>(to, scale, bias, at(i * run), run);
      else
        finish_channel<kResidual, kRelu>(to, scale[i % a.C], bias[i % a.C], at(i * run), run, to);
      if (!kRelu && a.activation != Activation::kNone) activate_values(to, run, a.activation);
    }
  });
}

template <class T>
void finish_any(const Conv2dEpilogue& a, const ThreadPool& pool) {
  if (a.N * a.C * a.plane == 0) return;
  const bool relu = a.activation == Activation::kRelu;
  if (a.residual != nullptr)
    return relu ? finish_image<true, true, T>(a, pool) : finish_image<true, false, T>(a, pool);
  return relu ? finish_image<false, true, T>(a, pool) : finish_image<false, false, T>(a, pool);
}

// By DType. AVX-512 takes the fp64 of AVX2: it moves bytes more than it computes.
inline constexpr void (*kFinish[4])(const Conv2dEpilogue&, const ThreadPool&) = {
#if FASTDL_ISA >= FASTDL_ISA_AVX512
    avx2::kFinish[0],
#else
    finish_any<double>,
#endif
    finish_any<float>, finish_any<Float16>, finish_any<BFloat16>};
