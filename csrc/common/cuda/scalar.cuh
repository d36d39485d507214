// Element types: the type sums are kept in, conversions, vectors of up to 16 bytes a load.
#pragma once
#include "common/cuda/device.cuh"
#include "common/dtype.h"

namespace fd {

// How a storage type is computed with: half types in fp32.
template <class T>
struct Scalar {
  using Compute = T;
  static FD_DEVICE T load(T v) { return v; }
  static FD_DEVICE T store(T v) { return v; }
};
template <>
struct Scalar<__half> {
  using Compute = float;
  static FD_DEVICE float load(__half v) { return __half2float(v); }
  static FD_DEVICE __half store(float v) { return __float2half_rn(v); }
};
template <>
struct Scalar<__nv_bfloat16> {
  using Compute = float;
  static FD_DEVICE float load(__nv_bfloat16 v) { return __bfloat162float(v); }
  static FD_DEVICE __nv_bfloat16 store(float v) { return __float2bfloat16_rn(v); }
};
template <class T>
using Compute = typename Scalar<T>::Compute;
template <class T>
FD_DEVICE Compute<T> to_compute(T v) {
  return Scalar<T>::load(v);
}
template <class T>
FD_DEVICE T from_compute(Compute<T> v) {
  return Scalar<T>::store(v);
}

// N elements that move together; the address must be a multiple of their size (of 16 bytes if they are more).
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vector {
  T value[N];
};
template <int kBytes>
struct Word;
template <>
struct Word<1> {
  using type = uint8_t;
};
template <>
struct Word<2> {
  using type = uint16_t;
};
template <>
struct Word<4> {
  using type = uint32_t;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

template <int N, class T>
FD_DEVICE Vector<T, N> load_vector(const T* p) {
  constexpr int kBytes = sizeof(T) * N, kWord = kBytes < 16 ? kBytes : 16;
  using W = typename Word<kWord>::type;
  Vector<T, N> v;
#pragma unroll
  for (int i = 0; i < kBytes / kWord; ++i) reinterpret_cast<W*>(&v)[i] = reinterpret_cast<const W*>(p)[i];
  return v;
}
template <int N, class T>
FD_DEVICE void store_vector(T* p, const Vector<T, N>& v) {
  constexpr int kBytes = sizeof(T) * N, kWord = kBytes < 16 ? kBytes : 16;
  using W = typename Word<kWord>::type;
#pragma unroll
  for (int i = 0; i < kBytes / kWord; ++i) reinterpret_cast<W*>(p)[i] = reinterpret_cast<const W*>(&v)[i];
}

// Host: calls f with a value of the element type.
template <class F>
cudaError_t with_type(fastdl::DType dtype, F f) {
  switch (dtype) {
    case fastdl::DType::kFloat64:
      return f(double{});
    case fastdl::DType::kFloat32:
      return f(float{});
    case fastdl::DType::kFloat16:
      return f(__half{});
    case fastdl::DType::kBFloat16:
      return f(__nv_bfloat16{});
  }
  return cudaErrorInvalidValue;
}

inline bool aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace fd
