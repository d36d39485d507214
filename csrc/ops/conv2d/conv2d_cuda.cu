// Launcher of the pass after somebody else's convolution: scale, bias, residual and activation, in place.
#include "ops/conv2d/conv2d_cuda.h"
#include "ops/conv2d/epilogue.cuh"

namespace fastdl::cuda {
namespace {

template <class T>
cudaError_t finish(const Conv2dEpilogue& e, cudaStream_t stream) {
  constexpr int V = kVector<T>;
  EpiloguePass<T> p{};
  p.y = static_cast<T*>(e.y), p.residual = static_cast<const T*>(e.residual);
  p.bias = static_cast<const T*>(e.bias), p.scale = static_cast<const T*>(e.scale);
  p.activation = e.activation, p.by_channels = fd::Divider(e.C);
  const bool vectors = fd::aligned(e.y, 16) && fd::aligned(e.residual, 16);
  const int64_t C = e.C, plane = e.plane;
  // Planes of one position are the channels of a pixel.
  if (e.channels_last || plane == 1) {
    auto advance = [C](EpiloguePass<T>& q, int64_t pixels) {
      q.y += pixels * C;
      if (q.residual) q.residual += pixels * C;
    };
    const bool wide = vectors && C % V == 0 && fd::aligned(e.bias, 16) && fd::aligned(e.scale, 16);
    return launch_pass(
        wide ? conv2d_epilogue_channels_last_kernel<T, V> : conv2d_epilogue_channels_last_kernel<T, 1>, p,
        e.N * plane, wide ? C / V : C, 1, 1, advance, stream);
  }
  auto advance = [C, plane](EpiloguePass<T>& q, int64_t planes) {
    q.y += planes * plane;
    if (q.residual) q.residual += planes * plane;
    q.first_channel = static_cast<uint32_t>((q.first_channel + planes) % C);
  };
  const bool wide = vectors && plane % V == 0;
  return launch_pass(wide ? conv2d_epilogue_kernel<T, V> : conv2d_epilogue_kernel<T, 1>, p, e.N * C,
                     wide ? plane / V : plane, 1, 1, advance, stream);
}

}  // namespace

cudaError_t conv2d_epilogue(const Conv2dEpilogue& e, cudaStream_t stream) {
  if (e.N * e.C * e.plane == 0) return cudaSuccess;
  if (e.C > fd::kMaxItems) return cudaErrorInvalidValue;
  return fd::with_type(e.dtype, [&](auto zero) { return finish<decltype(zero)>(e, stream); });
}

}  // namespace fastdl::cuda
