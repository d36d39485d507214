// relu(max_pool2d(conv2d(x, weight)) + bias) as one matrix product over positions, output channels, and input
//   channels times taps; 2x2 windows are pooled in the accumulators. Also without a pool.
// A block of 2 or 4 warps makes 128 positions by 32 or 64 channels; three stages of shared memory (36 KB),
// one
//   barrier a stage. Tensor cores for half types and, in tf32, for fp32; FMA for exact fp32 and fp64.
// Saves for backward: one byte per pooled element.
#include "ops/conv_relu_maxpool/conv_relu_maxpool_cuda.h"
#include "ops/conv_relu_maxpool/implicit_gemm_load.cuh"
#include "ops/conv_relu_maxpool/implicit_gemm_multiply.cuh"
#include "ops/conv_relu_maxpool/implicit_gemm_pack.cuh"
#include "ops/conv_relu_maxpool/implicit_gemm_store.cuh"

namespace fastdl::cuda {
namespace {

template <int kBlockN>
constexpr int kStageBytes = (kBlockM + kBlockN) * kRowBytes;

template <class T, class Load, class Multiply, int kWarpsN>
__global__ void __launch_bounds__(64 * kWarpsN)
    implicit_gemm_kernel(const __grid_constant__ ImplicitGemm<T> p) {
  constexpr int kThreads = 64 * kWarpsN, kBlockN = kWarpN * kWarpsN, kBytes = kStageBytes<kBlockN>;
  FD_DYNAMIC_SHARED(char, shared);
  // Channel tiles of the same positions run side by side, so that x comes from memory once.
  int channel_tile = blockIdx.x % p.channel_tiles;
  int64_t block_start = static_cast<int64_t>(blockIdx.x / p.channel_tiles) * kBlockM;
  const Place place = Place::of<kWarpsN>(threadIdx.x);
  PixelLocator<T> locate(p, p.pooled ? block_start / kPositions : block_start);
  Load load(p, locate, block_start);
  Multiply sums;

  auto begin = [&](int tile) {
    char* stage = shared + tile % kStages * kBytes;
    load.begin(tile, stage);
    load_weight<T, kThreads, kBlockN>(p, channel_tile, tile, stage + kBlockM * kRowBytes);
  };
  load.describe(0);
  __syncthreads();
  for (int tile = 0; tile < kStages - 1; ++tile) {
    if (tile < p.depth_tiles) {
      begin(tile);
      load.finish(shared + tile * kBytes);
    }
    fd::cp_async_commit();
    load.describe(tile + 1);
    __syncthreads();
  }
  for (int tile = 0; tile < p.depth_tiles; ++tile) {
    // After the barrier tile `tile` is there for everyone, and nobody reads the stage that is filled next.
    fd::cp_async_wait<kStages - 2>();
    __syncthreads();
    int next = tile + kStages - 1;
    if (next < p.depth_tiles) begin(next);
    fd::cp_async_commit();
    load.describe(next + 1);
    const char* stage = shared + tile % kStages * kBytes;
    sums.step(place, stage, stage + kBlockM * kRowBytes);
    if constexpr (Multiply::kStepsPerPiece > 0)
      if ((tile + 1) % Multiply::kStepsPerPiece == 0) sums.end_piece();
    if (next < p.depth_tiles) load.finish(shared + next % kStages * kBytes);
  }
  fd::cp_async_wait<0>();
  store_tile(p, place, locate, block_start, channel_tile * kBlockN, sums);
}

// Two warps where half of a 64-channel tile would be empty.
int warps_n(const ConvReluMaxpoolForward& f) { return f.conv.C_out <= kWarpN ? 1 : 2; }

struct Depth {
  int64_t elements, tiles;
};
Depth depth_of(const ConvReluMaxpoolForward& f) {
  int64_t size = f.dtype == DType::kFloat64 ? 8 : f.dtype == DType::kFloat32 ? 4 : 2;
  int64_t elements = f.conv.C * f.conv.KH * f.conv.KW, step = kRowBytes / size;
  return {elements, (elements + step - 1) / step};
}
int64_t channel_tiles(const ConvReluMaxpoolForward& f) {
  int64_t block_n = kWarpN * warps_n(f);
  return (f.conv.C_out + block_n - 1) / block_n;
}

template <class T>
bool whole_chunks(const ConvReluMaxpoolForward& f) {
  return f.x_strides[1] == 1 && f.conv.C % kChunk<T> == 0 && fd::aligned(f.x, 16) &&
         f.x_strides[0] % kChunk<T> == 0 && f.x_strides[2] % kChunk<T> == 0 &&
         f.x_strides[3] % kChunk<T> == 0;
}

template <class T>
ImplicitGemm<T> product(const ConvReluMaxpoolForward& f, const void* workspace) {
  ImplicitGemm<T> p{};
  const ConvGeometry& conv = f.conv;
  p.x = static_cast<const T*>(f.x), p.packed = static_cast<const T*>(workspace);
  p.bias = static_cast<const T*>(f.bias), p.output = static_cast<T*>(f.output), p.record = f.record;
  for (int i = 0; i < 4; ++i) p.x_strides[i] = f.x_strides[i], p.output_strides[i] = f.output_strides[i];
  p.C = conv.C, p.H = conv.H, p.W = conv.W, p.C_out = conv.C_out, p.KH = conv.KH, p.KW = conv.KW;
  p.stride_h = conv.stride[0], p.stride_w = conv.stride[1];
  p.padding_h = conv.padding[0], p.padding_w = conv.padding[1];
  p.dilation_h = conv.dilation[0], p.dilation_w = conv.dilation[1];
  p.pooled = f.pool.present;
  int64_t OH = p.pooled ? f.pool.OH : conv.CH, OW = p.pooled ? f.pool.OW : conv.CW;
  p.plane = OH * OW;
  p.positions = conv.N * p.plane * (p.pooled ? kPositions : 1);
  Depth depth = depth_of(f);
  p.depth = depth.elements, p.depth_tiles = depth.tiles, p.channel_tiles = channel_tiles(f);
  p.by_OW = fd::Divider(OW), p.by_plane = fd::Divider(p.plane);
  p.by_KW = fd::Divider(conv.KW), p.by_KH = fd::Divider(conv.KH);
  const int64_t* to = f.output_strides;
  p.vector_output = to[1] == 1 && conv.C_out % 8 == 0 && to[0] % 8 == 0 && to[2] % 8 == 0 && to[3] % 8 == 0 &&
                    fd::aligned(f.output, 16) && fd::aligned(f.record, 8);
  return p;
}

template <class T, class Load, class Multiply, int kWarpsN>
cudaError_t run(const ConvReluMaxpoolForward& f, ImplicitGemm<T> p, void* workspace, cudaStream_t stream) {
  constexpr int kBlockN = kWarpN * kWarpsN;
  PackWeight<T> pack{static_cast<const T*>(f.weight),
                     static_cast<T*>(workspace),
                     p.channel_tiles * int64_t{p.depth_tiles} * kBlockN * kDepth<T>,
                     p.C,
                     p.C_out,
                     p.KH * p.KW,
                     p.depth,
                     p.depth_tiles,
                     kBlockN,
                     Load::kTapsOutside,
                     Multiply::kTf32};
  dim3 pack_grid((pack.elements + kPackThreads - 1) / kPackThreads);
  cudaError_t error = fd::launch(pack_weight_kernel<T>, {pack_grid, dim3(kPackThreads)}, stream, pack);
  if (error != cudaSuccess) return error;
  dim3 grid((p.positions + kBlockM - 1) / kBlockM * p.channel_tiles);
  return fd::launch(implicit_gemm_kernel<T, Load, Multiply, kWarpsN>,
                    {grid, dim3(64 * kWarpsN), kStages * kStageBytes<kBlockN>}, stream, p);
}

template <class T, class Multiply, int kWarpsN>
cudaError_t run(const ConvReluMaxpoolForward& f, void* workspace, cudaStream_t stream) {
  constexpr int kThreads = 64 * kWarpsN;
  ImplicitGemm<T> p = product<T>(f, workspace);
  if constexpr (sizeof(T) < 8)
    if (whole_chunks<T>(f)) {
      p.by_chunks = fd::Divider(p.C / kChunk<T>);
      return run<T, LoadChannelsLast<T, kThreads>, Multiply, kWarpsN>(f, p, workspace, stream);
    }
  return run<T, LoadGather<T, kThreads>, Multiply, kWarpsN>(f, p, workspace, stream);
}

template <class T, class Multiply>
cudaError_t run(const ConvReluMaxpoolForward& f, void* workspace, cudaStream_t stream) {
  return warps_n(f) == 1 ? run<T, Multiply, 1>(f, workspace, stream)
                         : run<T, Multiply, 2>(f, workspace, stream);
}

}  // namespace

const char* implicit_gemm_refusal(const ConvReluMaxpoolForward& f) {
  if (f.conv.groups != 1) return "only groups 1";
  if (f.conv.KH > kMaxTaps || f.conv.KW > kMaxTaps) return "a kernel side is over 15";
  const PoolGeometry& pool = f.pool;
  if (pool.present && !(Window(pool).quads() && 2 * pool.OH <= f.conv.CH && 2 * pool.OW <= f.conv.CW))
    return "only a 2x2 pool with stride 2 and whole windows, or none";
  if (f.conv.CH * f.conv.CW > fd::kMaxItems) return "more than 2^30 positions a sample";
  if (f.conv.C * f.conv.KH * f.conv.KW > fd::kMaxItems) return "more than 2^30 weights a channel";
  int64_t blocks = f.conv.N * ((f.conv.CH * f.conv.CW + kBlockM - 1) / kBlockM) * channel_tiles(f);
  return blocks >= int64_t{1} << 31 ? "more than 2^31 blocks" : nullptr;
}

int64_t implicit_gemm_workspace(const ConvReluMaxpoolForward& f) {
  return channel_tiles(f) * depth_of(f).tiles * kWarpN * warps_n(f) * kRowBytes;
}

cudaError_t implicit_gemm_forward(const ConvReluMaxpoolForward& f, Precision precision, void* workspace,
                                  cudaStream_t stream) {
  if (implicit_gemm_refusal(f)) return cudaErrorNotSupported;
  if (f.conv.N == 0) return cudaSuccess;
  switch (f.dtype) {
    case DType::kFloat64:
      return run<double, MultiplyExact<double>>(f, workspace, stream);
    case DType::kFloat32:
      if (precision == Precision::kTf32) return run<float, MultiplyTensorCore<float>>(f, workspace, stream);
      return run<float, MultiplyExact<float>>(f, workspace, stream);
    case DType::kFloat16:
      return run<__half, MultiplyTensorCore<__half>>(f, workspace, stream);
    case DType::kBFloat16:
      return run<__nv_bfloat16, MultiplyTensorCore<__nv_bfloat16>>(f, workspace, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace fastdl::cuda
