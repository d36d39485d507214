// Attention by wgmma: what it serves, its tensor maps, how many blocks (attention_hopper.cuh). Host code.
#include <utility>

#include "ops/attention/attention_hopper.cuh"
#include "ops/attention/attention_launch.cuh"

namespace fastdl::cuda {
namespace {

// What is broadcast over heads or sequences is there once.
cudaError_t map_rows(fd::TensorMap* map, const HopperRows& rows) {
  const AttentionStrides& s = rows.strides;
  return fd::make_tensor_map(
      map, rows.first, {rows.width, rows.count, s.h == 0 ? 1 : rows.heads, s.b == 0 ? 1 : rows.sequences},
      {s.l, s.h, s.b}, kHopperRows);
}

}  // namespace

bool attention_hopper_reads(const HopperRows& rows) {
  const AttentionStrides& s = rows.strides;
  const auto whole = [](int64_t count, int64_t stride) { return count <= 1 || stride % 8 == 0; };
  return fd::aligned(rows.first, 16) && (rows.count <= 1 || s.l > 0) && whole(rows.count, s.l) &&
         whole(rows.heads, s.h) && whole(rows.sequences, s.b);
}

const char* attention_hopper_refusal(const AttentionCall& c) {
  if (c.dtype != DType::kFloat16 && c.dtype != DType::kBFloat16)
    return "wgmma multiplies float16 and bfloat16";
  const auto served = [](int64_t width) { return width > 0 && width <= 128 && width % 8 == 0; };
  if (!served(c.D) || !served(c.D_v)) return "heads are not multiples of 8 up to 128";
  if (c.cu_seqlens_q != nullptr) return "a tensor map does not end where a packed sequence ends";
  if (c.dropout_p > 0) return "no dropout by wgmma";
  return attention_refusal(c);
}

cudaError_t attention_hopper(const AttentionForward& a, cudaStream_t stream) {
  const AttentionCall& c = a.c;
  if (attention_hopper_refusal(c)) return cudaErrorNotSupported;
  const int64_t blocks = blocks_of(c.L_q, kHopperRows);
  if (c.B * c.H * blocks <= 0) return cudaSuccess;
  HopperMaps maps{};
  if (c.L_k > 0)
    for (const auto& [map, rows] :
         {std::pair(&maps.q, attention_hopper_q(c)), std::pair(&maps.k, attention_hopper_k(c)),
          std::pair(&maps.v, attention_hopper_v(c))}) {
      const cudaError_t error = map_rows(map, rows);
      if (error != cudaSuccess) return error;
    }
  const auto start = [&](auto element, auto size) {
    using T = decltype(element);
    constexpr int kD = decltype(size)::value;
    const auto kernel = attention_hopper_kernel<T, kD>;
    if (!fd::has_body(kernel)) return cudaErrorNoKernelImageForDevice;
    const fd::LaunchShape shape{dim3(static_cast<unsigned>(c.B * c.H * blocks)), dim3(kHopperThreads),
                                static_cast<size_t>(kHopperBytes<kD>)};
    return fd::launch(kernel, shape, stream, a, maps, static_cast<int>(blocks));
  };
  const auto with_size = [&](auto element) {
    return c.D <= 64 && c.D_v <= 64 ? start(element, HeadSize<64>()) : start(element, HeadSize<128>());
  };
  return c.dtype == DType::kFloat16 ? with_size(__half{}) : with_size(__nv_bfloat16{});
}

}  // namespace fastdl::cuda
